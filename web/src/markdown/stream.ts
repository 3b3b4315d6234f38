/**
 * The body of one message. Text goes in, blocks come out; the framework is not involved, so the
 * cost of a token does not depend on the length of the conversation or of the message.
 */

import type { Token } from "marked";
import { blockOf, type Block } from "./blocks";
import { BlockLexer } from "./lexer";

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
    if (done) return this.finish(text);
    const chunk = text.slice(this.lexer.text.length);
    if (chunk) this.render(this.lexer.push(chunk));
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
  private finish(text: string): void {
    const tokens = this.lexer.finish(text);
    tokens.forEach((token, index) => this.place(index, token));
    this.trim(tokens.length);
    this.finished = true;
  }

  private place(index: number, token: Token): void {
    const old = this.blocks[index];
    if (old?.update(token)) return;
    const block = blockOf(token);
    this.blocks[index] = block;
    if (old) old.element.replaceWith(block.element);
    else this.root.append(block.element);
  }

  private trim(length: number): void {
    for (const block of this.blocks.splice(length)) block.element.remove();
  }
}
