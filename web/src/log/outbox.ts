/**
 * Commands that the server has not acknowledged yet, in order.
 *
 * They are kept in the tab's session storage and sent again, with the same ids, after every
 * reconnect and even after a reload of the page: the server takes each of them once.
 */

import type { Command } from "./protocol";

export interface Storage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

export class Outbox {
  private commands: Command[];

  constructor(
    private readonly storage: Storage,
    private readonly key = "everlog:outbox",
    private readonly changed: () => void = () => {},
  ) {
    this.commands = read(storage, key);
  }

  get all(): readonly Command[] {
    return this.commands;
  }

  add(command: Command): void {
    this.commands = [...this.commands, command];
    this.save();
  }

  /** Take a command out (acknowledged or refused); returns it if it was there. */
  settle(id: string | null): Command | undefined {
    const found = this.commands.find((command) => command.id === id);
    if (found) {
      this.commands = this.commands.filter((command) => command !== found);
      this.save();
    }
    return found;
  }

  private save(): void {
    try {
      this.storage.setItem(this.key, JSON.stringify(this.commands));
    } catch {
      // Storage is full or forbidden: then a reload forgets what was not acknowledged.
    }
    this.changed();
  }
}

function read(storage: Storage, key: string): Command[] {
  try {
    const value: unknown = JSON.parse(storage.getItem(key) ?? "[]");
    return Array.isArray(value) ? (value as Command[]) : [];
  } catch {
    return [];
  }
}
