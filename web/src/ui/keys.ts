/** Shortcuts that work everywhere on the page. */

import { focusComposer, focusSearch } from "../app/focus";
import { isNarrow, sidebar } from "../app/layout";
import { active, newChat, stop } from "../app/store";
import { refresh, search } from "../app/threads";
import { help } from "./help";

/** Close what lies on top, else stop the answer; returns whether there was anything to do. */
function escape(): boolean {
  if (help.value) return false; // the dialog closes itself
  if (document.activeElement?.id === "search") {
    search.value = "";
    refresh();
    focusComposer();
  } else if (isNarrow() && sidebar.value) {
    sidebar.value = false;
    focusComposer();
  } else if (active.value) stop();
  else return false;
  return true;
}

function goSearching(): void {
  sidebar.value = true;
  if (!focusSearch()) requestAnimationFrame(focusSearch); // it has to appear first
}

function onKeyDown(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing) return;
  const mod = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  let done = true;
  if (key === "escape" && event.shiftKey) focusComposer();
  else if (key === "escape") done = escape();
  else if (mod && !event.shiftKey && key === "k") goSearching();
  else if (mod && event.shiftKey && key === "o") newChat();
  else if (mod && key === "/") help.value = !help.value;
  else done = false;
  if (done) event.preventDefault();
}

export function listenForKeys(): void {
  document.addEventListener("keydown", onKeyDown);
}
