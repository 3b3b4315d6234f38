/** A payload of the log. Defaults are left out of the stored JSON, so every reader has one. */
export class Payload {
  constructor(private readonly fields: Record<string, unknown>) {}

  text(name: string, otherwise = ""): string {
    const value = this.fields[name];
    return typeof value === "string" ? value : otherwise;
  }

  /** A text that may be missing. */
  maybe(name: string): string | null {
    const value = this.fields[name];
    return typeof value === "string" ? value : null;
  }

  number(name: string, otherwise = 0): number {
    const value = this.fields[name];
    return typeof value === "number" ? value : otherwise;
  }

  flag(name: string): boolean {
    return this.fields[name] === true;
  }

  map(name: string): Record<string, unknown> {
    return (this.fields[name] as Record<string, unknown> | undefined) ?? {};
  }

  list<T>(name: string): T[] {
    return (this.fields[name] as T[] | undefined) ?? [];
  }

  any<T = unknown>(name: string): T | null {
    return (this.fields[name] as T | undefined) ?? null;
  }
}
