/** Light, dark, or what the system says. */

import { signal } from "@preact/signals";
import { load, save } from "./storage";

export type Theme = "system" | "light" | "dark";
const THEMES: readonly Theme[] = ["system", "light", "dark"];

export const theme = signal<Theme>(THEMES.find((name) => name === load("theme")) ?? "system");

function show(): void {
  const { dataset } = document.documentElement;
  if (theme.value === "system") delete dataset.theme;
  else dataset.theme = theme.value;
}

export function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!;
  save("theme", theme.value === "system" ? "" : theme.value);
  show();
}

show();
