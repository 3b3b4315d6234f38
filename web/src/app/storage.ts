/** Local storage that never throws: it may be full, or forbidden by the browser's settings. */

export function load(key: string, area: Storage = localStorage): string {
  try {
    return area.getItem(`everlog:${key}`) ?? "";
  } catch {
    return "";
  }
}

export function save(key: string, value: string, area: Storage = localStorage): void {
  try {
    if (value) area.setItem(`everlog:${key}`, value);
    else area.removeItem(`everlog:${key}`);
  } catch {
    // Then it is forgotten with the page.
  }
}
