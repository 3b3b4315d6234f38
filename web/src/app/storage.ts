/** Local storage that never throws: it may be full, or forbidden by the browser's settings. */

import { stored } from "./place";

export function load(key: string, area: Storage = localStorage): string {
  try {
    return area.getItem(stored(key)) ?? "";
  } catch {
    return "";
  }
}

export function save(key: string, value: string, area: Storage = localStorage): void {
  try {
    if (value) area.setItem(stored(key), value);
    else area.removeItem(stored(key));
  } catch {
    // Then it is forgotten with the page.
  }
}
