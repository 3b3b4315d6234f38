import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { Token } from "marked";
import { BlockLexer, isClosed } from "../src/markdown/lexer";

const raws = (tokens: Token[]) => tokens.map((token) => token.raw);
const whole = (text: string) => {
  const lexer = new BlockLexer();
  lexer.push(text);
  return raws(lexer.finish(lexer.text));
};

const documents = ["marked", "preact", "remend", "dompurify", "highlight.js"].map((name) => ({
  name,
  text: readFileSync(join(process.env.EVERLOG_WEB!, "node_modules", name, "README.md"), "utf8"),
}));

for (const { name, text } of documents) {
  test(`frozen blocks are those of a full lex: README of ${name}`, () => {
    for (const size of [7, 24, 301]) {
      const lexer = new BlockLexer();
      for (let at = 0; at < text.length; at += size) lexer.push(text.slice(at, at + size));
      const expected = whole(text);
      assert.deepEqual(raws(lexer.frozen), expected.slice(0, lexer.frozen.length));
      assert.ok(lexer.frozen.length >= expected.length - 3);
    }
  });
}

test("the end of what was written so far is mended", () => {
  const last = (text: string) => JSON.stringify(new BlockLexer().push(text).at(-1));
  assert.match(last("some **bold"), /"type":"strong"/);
  assert.match(last("some `code"), /"type":"codespan"/);
  assert.doesNotMatch(last("see [the page](https://exam"), /"type":"link"/);
  assert.match(last("see [the page](https://example.org)"), /"type":"link"/);
});

test("raw HTML is text", () => {
  const tokens = JSON.stringify(new BlockLexer().push("<div onclick=x>\n<script>1</script>\n\na <b>b</b>"));
  assert.doesNotMatch(tokens, /"type":"html"/);
});

test("links defined later are resolved in the end", () => {
  const lexer = new BlockLexer();
  lexer.push("See [it][1].\n\nMore.\n\nAnd more.\n\n[1]: https://example.org\n");
  assert.match(JSON.stringify(lexer.finish(lexer.text)[0]), /example\.org/);
});

test("a fence is closed by its own kind", () => {
  const code = (text: string) => isClosed(new BlockLexer().push(text).at(-1)!);
  assert.ok(!code("```py\nx = 1\n"));
  assert.ok(!code("````\n```\n"));
  assert.ok(!code("~~~\n```\n"));
  assert.ok(!code("```"));
  assert.ok(code("```py\nx = 1\n```"));
  assert.ok(code("    indented"));
});

/** The formulas in a text, in order, however deep. */
function formulas(text: string): string[] {
  const lexer = new BlockLexer();
  const found: string[] = [];
  const walk = (value: unknown): void => {
    if (Array.isArray(value)) value.forEach(walk);
    else if (typeof value === "object" && value !== null) {
      const { type, text, display } = value as Record<string, unknown>;
      if (type === "formula") found.push(`${display ? "display " : ""}${text}`);
      else Object.values(value).forEach(walk);
    }
  };
  walk(lexer.finish(text));
  return found;
}

test("formulas in a line and for themselves", () => {
  assert.deepEqual(formulas("So $a_1 b_1$ and \\(x * y * z\\), *or $c$*."), ["a_1 b_1", "x * y * z", "c"]);
  assert.deepEqual(formulas("Before\n\\[ \\frac{1}{2} \\]\nafter"), ["display \\frac{1}{2}"]);
  assert.deepEqual(formulas("$$\nx = 1\n\n+ 2\n$$\n\n- $$y$$"), ["display x = 1\n\n+ 2", "display y"]);
});

test("prices, shell variables and code are no formulas", () => {
  for (const text of ["$5 and $6", "$5/$6", "$HOME/$PATH and US$ 3", "`$x$` \\$y\\$", "```\n$$x$$\n```", "cost: $ 3 $", "$$"]) {
    assert.deepEqual(formulas(text), [], text);
  }
});
