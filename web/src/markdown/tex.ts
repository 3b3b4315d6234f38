/** Formulas in markdown: which text is one, and where it stands in a block. */

import type { TokenizerExtensionFunction, Tokens, TokenizerStartFunction } from "marked";

type Formula = Tokens.Generic & { text: string; display: boolean };

/** Of display formulas, `$$ … $$` and `\[ … \]`. Bounded: what is never closed costs no more. */
const DISPLAY = /^(?:\$\$((?:\\[^]|[^\\$]){1,2000}?)\$\$|\\\[([^]{1,2000}?)\\\])/;
const BLOCK = new RegExp(`^ {0,3}${DISPLAY.source.slice(1)} *(?:\\n+|$)`);
/**
 * Of formulas in a line, `\( … \)` and `$ … $`. Prices and variables of a shell are none: the
 * first dollar has no space after it and no letter before it, the last no space before it and no
 * letter after it.
 */
const INLINE = /^(?:\\\(([^]{1,1000}?)\\\)|\$(?![\s$])((?:\\.|[^\\\n$]){1,1000}?)(?<!\s)\$(?![\dA-Za-z$]))/;

function formula(found: RegExpExecArray | null, display: boolean): Formula | undefined {
  const text = (found?.[1] ?? found?.[2])?.trim();
  return found && text ? { type: "formula", raw: found[0], text, display } : undefined;
}

const block: TokenizerExtensionFunction = (source) => formula(BLOCK.exec(source), true);
const inline: TokenizerExtensionFunction = (source) =>
  formula(DISPLAY.exec(source), true) ?? formula(INLINE.exec(source), false);

const startInline: TokenizerStartFunction = (source) => {
  const at = source.search(/(?<![\dA-Za-z/$])\$(?!\s)|\\[([]/);
  return at < 0 ? undefined : at;
};

/** For the lexer. */
export const FORMULAS = {
  block: [block],
  inline: [inline],
  startInline: [startInline],
  childTokens: {},
  renderers: {},
};

const typeset = new Map<string, Node>();
const MOST = 300;

/** Let the formulas in a block be seen as such, now or once what does that is loaded. */
export function setFormulas(element: HTMLElement): void {
  for (const place of element.querySelectorAll<HTMLElement>(".formula")) {
    const tex = (place.textContent ?? "").replace(/^\s*(?:\$\$?|\\[([])|(?:\$\$?|\\[)\]])\s*$/g, "");
    const display = place.classList.contains("display");
    if (display) place.tabIndex = 0; // a wide one scrolls, also by keyboard
    const known = typeset.get(`${display}${tex}`);
    if (known) place.replaceChildren(known.cloneNode(true));
    else void set(place, tex, display);
  }
}

async function set(place: HTMLElement, tex: string, display: boolean): Promise<void> {
  const { mathOf } = await import("./math");
  const math = mathOf(tex, display);
  if (!math) return; // what cannot be read stays as it was written
  if (typeset.size >= MOST) typeset.clear();
  typeset.set(`${display}${tex}`, math);
  place.replaceChildren(math.cloneNode(true));
}
