/** Blocks of a message as elements. Those that grow in parts keep the parts that stay the same. */

import type { Token, Tokens } from "marked";
import { codeBlock } from "./code";
import { htmlOf, safeBlock } from "./html";
import { setFormulas } from "./tex";

export interface Block {
  element: HTMLElement;
  /** Show more of the same block; false if it became another one. */
  update(token: Token): boolean;
}

export function blockOf(token: Token): Block {
  if (token.type === "code") return codeBlock(token as Tokens.Code);
  return partsOf(token).length ? partedBlock(token) : plainBlock(token);
}

function plainBlock(token: Token): Block {
  const html = htmlOf(token);
  return { element: dressed(html), update: (next) => !partsOf(next).length && htmlOf(next) === html };
}

/** Items of a list, rows of a table: each in a block of its own, which has nothing else. */
function partsOf(token: Token): Token[] {
  if (token.type === "list") return (token as Tokens.List).items.map((item) => ({ ...token, items: [item] }) as Token);
  if (token.type === "table") return (token as Tokens.Table).rows.map((row) => ({ ...token, rows: [row] }) as Token);
  return [];
}

/** What all parts have in common: of which list or table they are. */
function frameOf(token: Token): string {
  if (token.type !== "list") return htmlOf({ ...token, rows: [] } as Token);
  const { ordered, start } = token as Tokens.List;
  return `${ordered} ${start}`;
}

/** A long list or table costs as much as its last part: what is there already is not laid out again. */
function partedBlock(token: Token): Block {
  const { type } = token;
  const frame = frameOf(token);
  const [first, ...rest] = partsOf(token).map(htmlOf) as [string, ...string[]];
  const place = type === "list" ? ":scope > :is(ul, ol)" : "tbody";
  const element = dressed(first);
  const parent = element.querySelector(place)!;
  const shown = [first];
  const make = (html: string) => dressed(html).querySelector(place)!.firstElementChild!;
  const show = (html: string, index: number) => {
    if (shown[index] === html) return;
    const old = parent.children[index];
    if (old) old.replaceWith(make(html));
    else parent.append(make(html));
    shown[index] = html;
  };
  rest.forEach((html, index) => show(html, index + 1));
  const update = (next: Token) => {
    if (next.type !== type || frameOf(next) !== frame) return false;
    const parts = partsOf(next);
    if (!parts.length) return false;
    parts.forEach((part, index) => show(htmlOf(part), index));
    for (let extra = shown.splice(parts.length).length; extra > 0; extra--) parent.lastElementChild!.remove();
    return true;
  };
  return { element, update };
}

/** A safe element for HTML, dressed as blocks are. */
function dressed(html: string): HTMLElement {
  const element = safeBlock(html);
  for (const table of element.querySelectorAll("table")) wrapTable(table);
  // Code inside lists and quotes comes as plain HTML: give it the same dress.
  for (const pre of element.querySelectorAll("pre")) pre.replaceWith(innerCode(pre));
  setFormulas(element);
  return element;
}

function wrapTable(table: HTMLTableElement): void {
  const frame = Object.assign(document.createElement("div"), { className: "table", tabIndex: 0 });
  table.replaceWith(frame);
  frame.append(table);
}

function innerCode(pre: HTMLPreElement): HTMLElement {
  const lang = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const text = (pre.textContent ?? "").replace(/\n$/, "");
  return codeBlock({ type: "code", raw: "", lang, text }).element;
}
