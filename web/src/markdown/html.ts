/** Blocks to HTML strings, and HTML strings to safe DOM nodes. */

import createDOMPurify from "dompurify";
import { Parser, Renderer, type Token, type Tokens } from "marked";

const SAFE_LINK = /^(https?:|mailto:|tel:)/i;
const DATA_IMAGE = /^data:image\/(png|jpe?g|gif|webp|avif);base64,/i;

export function escape(text: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (char) => names[char]!);
}

function hostOf(address: string): string {
  try {
    return new URL(address).host;
  } catch {
    return "";
  }
}

class SafeRenderer extends Renderer {
  override html({ text }: Tokens.HTML | Tokens.Tag): string {
    return escape(text);
  }

  override link(token: Tokens.Link): string {
    const label = this.parser.parseInline(token.tokens);
    if (!SAFE_LINK.test(token.href) || !URL.canParse(token.href)) return label;
    const title = token.title ? ` title="${escape(token.title)}"` : "";
    return `<a href="${escape(token.href)}"${title} target="_blank" rel="noopener noreferrer nofollow">${label}</a>`;
  }

  /** An image from elsewhere would tell its server that the message was read: it stays a link. */
  override image({ href, text }: Tokens.Image): string {
    const alt = escape(text);
    if (DATA_IMAGE.test(href)) return `<img src="${escape(href)}" alt="${alt}">`;
    const host = hostOf(href);
    if (!/^https?:/i.test(href) || !host) return alt;
    return `<a class="outside" href="${escape(href)}">Image from ${escape(host)}${alt && `: ${alt}`}</a>`;
  }

  override heading({ tokens, depth }: Tokens.Heading): string {
    const level = Math.min(6, depth + 2); // the page has its own h1, each message an h2
    return `<h${level} class="h${depth}">${this.parser.parseInline(tokens)}</h${level}>`;
  }

  override listitem(item: Tokens.ListItem): string {
    return `<li${item.task ? ' class="task"' : ""}>${this.parser.parse(item.tokens)}</li>\n`;
  }

  override checkbox({ checked }: Tokens.Checkbox): string {
    return checked ? "☑ " : "☐ ";
  }
}

/** TeX, to be replaced by `setFormulas`. */
function formula({ raw, display }: Tokens.Generic): string {
  return `<span class="formula${display ? " display" : ""}">${escape(raw.trim())}</span>`;
}

const PARSER = {
  renderer: new SafeRenderer(),
  extensions: { renderers: { formula }, childTokens: {} },
};

/** HTML of one block. */
export function htmlOf(token: Token): string {
  return Parser.parse([token], PARSER);
}

const PURIFY = {
  ALLOWED_TAGS: [
    ..."div span p br hr strong em del code pre blockquote ul ol li a img".split(" "),
    ..."h1 h2 h3 h4 h5 h6 table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "target", "rel", "src", "alt", "class", "dir", "start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  IN_PLACE: true as const,
};

const purify = createDOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank"); // whatever else happens, no page gets hold of this one
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** Parses without a window: nothing in it loads or runs, and it is cheaper than a new document. */
const inert = document.createElement("template");

/** A safe element for HTML that comes from a model or a user. */
export function safeBlock(html: string): HTMLElement {
  inert.innerHTML = `<div class="block" dir="auto">${html}</div>`;
  const block = inert.content.firstElementChild as HTMLElement;
  purify.sanitize(block, PURIFY);
  return block;
}

/** Safe nodes for the output of the highlighter: nothing but coloured spans. */
export function sanitizeSpans(html: string): DocumentFragment {
  return purify.sanitize(html, { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true });
}

const MATH = { USE_PROFILES: { mathMl: true }, FORBID_ATTR: ["style", "href"], IN_PLACE: true as const };
/** What a formula may say about its looks: in rules of their own, which the page's policy allows. */
const LOOKS = /^(?:color|border|padding(?:-left|-right)?)$/;

/** A safe element for MathML. */
export function sanitizeMath(html: string): Element | null {
  inert.innerHTML = html.replace(/(<[^<>]*) style="/g, '$1 data-looks="'); // not to be refused as style
  const math = inert.content.firstElementChild;
  if (math?.localName !== "math") return null;
  purify.sanitize(math, MATH);
  for (const part of math.querySelectorAll<MathMLElement>("[data-looks]")) {
    for (const rule of part.dataset.looks!.split(";")) {
      const [name, value] = rule.split(":") as [string, string | undefined];
      if (value && LOOKS.test(name)) part.style.setProperty(name, value);
    }
    part.removeAttribute("data-looks");
  }
  return math;
}
