/**
 * Splits growing markdown into top-level blocks without lexing its beginning again and again.
 *
 * A block is frozen once two later ones exist: until then more text may still change it (a list
 * goes on, a paragraph turns out to be a heading or a table). Only the rest is lexed anew.
 */

import { Lexer, Tokenizer, type Token, type TokensList } from "marked";
import remend from "remend";
import { FORMULAS } from "./tex";

/** Raw HTML is no markup here: without these rules it stays text, and is shown as such. */
class PlainTokenizer extends Tokenizer {
  override html(): undefined {
    return undefined;
  }
  override tag(): undefined {
    return undefined;
  }
}

const OPTIONS = { gfm: true, tokenizer: new PlainTokenizer(), extensions: FORMULAS };
/** How many blocks at the end stay open. */
const OPEN = 2;

type Links = TokensList["links"];

export class BlockLexer {
  /** The whole text so far. */
  text = "";
  /** Blocks that no further text can change. */
  readonly frozen: Token[] = [];
  private offset = 0;
  private links: Links = {};

  /** Add text; returns the blocks that may still change, mended so that they read well. */
  push(chunk: string): Token[] {
    this.text += chunk;
    const tokens = this.lex(this.text.slice(this.offset));
    const solid = tokens.flatMap((token, index) => (token.type === "space" ? [] : [index]));
    const cut = solid.length > OPEN ? solid[solid.length - OPEN]! : 0;
    for (const token of tokens.slice(0, cut)) {
      this.offset += token.raw.length;
      if (token.type !== "space") this.frozen.push(token);
    }
    return this.mend(tokens.slice(cut));
  }

  /** All blocks of the whole text, reference links resolved: what the message looks like for good. */
  finish(text: string): Token[] {
    this.text = text;
    this.links = {};
    return this.lex(this.text).filter((token) => token.type !== "space");
  }

  private lex(source: string): Token[] {
    const lexer = new Lexer(OPTIONS);
    Object.assign(lexer.tokens.links, this.links);
    const tokens = lexer.lex(source);
    this.links = { ...lexer.tokens.links };
    return [...tokens];
  }

  /** Close what the last block leaves open (`**bold`, `[link](`), as if its end had come. */
  private mend(tail: Token[]): Token[] {
    const last = tail.at(-1);
    if (last && last.type !== "code" && last.type !== "space") {
      const mended = remend(last.raw, { katex: false, htmlTags: false, linkMode: "text-only" });
      if (mended !== last.raw) tail = [...tail.slice(0, -1), ...this.lex(mended)];
    }
    return tail.filter((token) => token.type !== "space");
  }
}

/** Whether the fence of a code block has been closed (an indented block is closed by nature). */
export function isClosed(token: Token): boolean {
  if (token.type !== "code" || token.codeBlockStyle === "indented") return true;
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(token.raw)?.[1];
  if (!fence) return true;
  const lastLine = token.raw.trimEnd().split("\n").at(-1)!.trim();
  return token.raw.includes("\n") && lastLine.startsWith(fence) && /^(`+|~+)$/.test(lastLine);
}
