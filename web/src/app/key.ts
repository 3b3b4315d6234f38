/** The API key of a server that needs one: kept for this tab, gone with it. */

import { load, save } from "./storage";

let key = load("key", sessionStorage);

/** The key, if there is one. */
export const token = (): string | null => key || null;

export function keepKey(text: string): void {
  key = text;
  save("key", text, sessionStorage);
}

/** Headers of a request over HTTP. */
export const authorized = (): Record<string, string> => (key ? { authorization: `Bearer ${key}` } : {});
