/** Code blocks: a label, a copy button, and colours once the code is complete. */

import type { Token, Tokens } from "marked";
import type { Block } from "./blocks";
import { isClosed } from "./lexer";
import { sanitizeSpans } from "./html";

/** Longer code stays plain: colouring it would hold up the page. */
const MAX_HIGHLIGHT = 50_000;

export function codeBlock(token: Tokens.Code): Block {
  const language = languageOf(token);
  const label = Object.assign(document.createElement("span"), { className: "code-lang", textContent: language || "text" });
  const copy = copyButton("Copy code", () => text.data);
  const bar = Object.assign(document.createElement("div"), { className: "code-bar" });
  bar.append(label, copy);
  const code = document.createElement("code");
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // wide code scrolls, also by keyboard
  pre.append(code);
  const element = Object.assign(document.createElement("div"), { className: "code", dir: "ltr" });
  element.append(bar, pre);
  let text = new Text("");
  code.append(text);
  let coloured = false;

  const update = (given: Token): boolean => {
    if (given.type !== "code") return false;
    const next = given as Tokens.Code;
    if (languageOf(next) !== language || !next.text.startsWith(text.data)) return false;
    if (next.text.length > text.data.length) {
      if (coloured) return false;
      text.appendData(next.text.slice(text.data.length));
    }
    if (!coloured && language && isClosed(next) && text.data.length <= MAX_HIGHLIGHT) {
      coloured = true;
      void colour(code, text.data, language);
    }
    return true;
  };
  update(token);
  return { element, update };
}

function languageOf(token: Tokens.Code): string {
  return (token.lang ?? "").trim().split(/[\s{,:]/)[0]!.slice(0, 30);
}

async function colour(code: HTMLElement, text: string, language: string): Promise<void> {
  const { highlight } = await import("./highlight");
  const html = highlight(text, language);
  if (html !== null) code.replaceChildren(sanitizeSpans(html));
}

/** A button that copies a text and says so, to eyes and to screen readers. */
export function copyButton(label: string, text: () => string): HTMLButtonElement {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "code-copy" });
  const idle = () => {
    button.textContent = "Copy";
    button.setAttribute("aria-label", label);
  };
  idle();
  button.addEventListener("click", async () => {
    const done = await copyText(text());
    button.textContent = done ? "Copied" : "Failed";
    button.removeAttribute("aria-label");
    document.dispatchEvent(new CustomEvent("announce", { detail: done ? "Copied" : "Copying failed" }));
    setTimeout(idle, 2000);
  });
  return button;
}

/** Put text on the clipboard, also on pages without https, where there is no clipboard API. */
export async function copyText(text: string): Promise<boolean> {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // not allowed: try the old way
  }
  const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
  document.body.append(area);
  const focus = document.activeElement;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focus instanceof HTMLElement) focus.focus();
  return done;
}
