/**
 * The body of one message. Text goes in, blocks come out; the framework is not involved, so the
 * cost of a token does not depend on the length of the conversation or of the message.
 */

import type { Token, Tokens } from "marked";
import { codeBlock, type CodeBlock } from "./code";
import { htmlOf, sanitize } from "./html";
import { BlockLexer } from "./lexer";

interface Block {
  element: HTMLElement;
  html: string;
  code: CodeBlock | null;
}

export class BlockStream {
  private lexer = new BlockLexer();
  private blocks: Block[] = [];
  private frozen = 0;
  private finished = false;

  constructor(readonly root: HTMLElement) {}

  /** Show `text`; `done` if no more will come. Cheap if it only grew. */
  show(text: string, done: boolean): void {
    if (!text.startsWith(this.lexer.text) || (this.finished && text !== this.lexer.text)) this.reset();
    if (this.finished) return;
    const chunk = text.slice(this.lexer.text.length);
    if (chunk) this.render(this.lexer.push(chunk));
    if (done) this.finish();
  }

  private reset(): void {
    this.lexer = new BlockLexer();
    this.blocks = [];
    this.frozen = 0;
    this.finished = false;
    this.root.replaceChildren();
  }

  private render(tail: Token[]): void {
    const { frozen } = this.lexer;
    for (; this.frozen < frozen.length; this.frozen++) this.place(this.frozen, frozen[this.frozen]!);
    tail.forEach((token, index) => this.place(this.frozen + index, token));
    this.trim(this.frozen + tail.length);
  }

  /** One parse of the whole; only blocks that look different than before are touched. */
  private finish(): void {
    const tokens = this.lexer.finish();
    tokens.forEach((token, index) => this.place(index, token));
    this.trim(tokens.length);
    this.finished = true;
  }

  private place(index: number, token: Token): void {
    const old = this.blocks[index];
    if (token.type === "code" && old?.code?.update(token as Tokens.Code)) return;
    const code = token.type === "code" ? codeBlock(token as Tokens.Code) : null;
    const html = code ? "" : htmlOf(token);
    if (old && !old.code && !code && old.html === html) return;
    const element = code ? code.element : plainBlock(html);
    this.blocks[index] = { element, html, code };
    if (old) old.element.replaceWith(element);
    else this.root.append(element);
  }

  private trim(length: number): void {
    for (const block of this.blocks.splice(length)) block.element.remove();
  }
}

function plainBlock(html: string): HTMLElement {
  const element = Object.assign(document.createElement("div"), { className: "block" });
  element.append(sanitize(html));
  for (const table of element.querySelectorAll("table")) wrapTable(table);
  // Code inside lists and quotes comes as plain HTML: give it the same dress.
  for (const pre of element.querySelectorAll("pre")) pre.replaceWith(innerCode(pre));
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
