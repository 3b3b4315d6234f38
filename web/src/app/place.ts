/** Where this Everlog is: at the root of its host, or below a path of a proxy. */

/** Address of the page. The scripts are in `static/assets` below it. */
export const root = new URL("../../", import.meta.url);

/** Path of a thread's page. */
export const threadPath = (id: string): string => `${root.pathname}t/${id}`;

/** Id of the thread that the address names; null at the page of a new one. */
export function threadOfPath(path: string): string | null {
  if (!path.startsWith(root.pathname)) return null;
  return /^t\/([A-Za-z0-9][A-Za-z0-9._-]{0,63})\/?$/.exec(path.slice(root.pathname.length))?.[1] ?? null;
}

/** What something is stored under: several of a host must not read each other's. */
export const stored = (key: string): string => `everlog:${root.pathname === "/" ? "" : root.pathname}${key}`;
