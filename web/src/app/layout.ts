/** Whether the list of chats is shown: beside the conversation, or over it on narrow screens. */

import { effect, signal } from "@preact/signals";
import { load, save } from "./storage";

const narrow = matchMedia("(max-width: 760px)");

export const isNarrow = () => narrow.matches;
/** The same as a signal, for rendering. */
export const narrowScreen = signal(narrow.matches);
export const sidebar = signal(!narrow.matches && load("sidebar") !== "closed");

narrow.addEventListener("change", () => {
  narrowScreen.value = narrow.matches;
  sidebar.value = !narrow.matches && load("sidebar") !== "closed";
});

effect(() => {
  const open = sidebar.value;
  if (!narrow.matches) save("sidebar", open ? "" : "closed");
});

/** Show or hide the list, and put the focus on the button that takes that back. */
export function toggleSidebar(): void {
  sidebar.value = !sidebar.value;
  requestAnimationFrame(() => document.querySelector<HTMLElement>("[data-sidebar]")?.focus());
}
