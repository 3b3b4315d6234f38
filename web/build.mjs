// Builds the UI: web/src -> app/transport/static. Needs nothing but esbuild.
import { build, context } from "esbuild";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const web = dirname(fileURLToPath(import.meta.url));
const out = process.env.EVERLOG_WEB_OUT ?? join(web, "..", "app", "transport", "static");

/** Hash over names and contents of the sources; hatch_build.py computes the same. */
function sourceHash() {
  const files = readdirSync(join(web, "src"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(web, join(entry.parentPath ?? entry.path, entry.name)).split(sep).join("/"));
  for (const name of ["build.mjs", "package.json", "package-lock.json", "tsconfig.json"]) files.push(name);
  const total = createHash("sha256");
  for (const name of files.sort()) {
    const digest = createHash("sha256").update(readFileSync(join(web, name))).digest("hex");
    total.update(`${name}\0${digest}\n`);
  }
  return total.digest("hex");
}

/** Write the page with the hashed names of script and style sheet: index.html, and thread.html for `t/ID`. */
function writePage(meta) {
  const find = (ending) => {
    const [path] = Object.entries(meta.outputs).find(
      ([name, output]) => name.endsWith(ending) && (output.entryPoint ?? "").startsWith("src/main"),
    );
    return path.split("/").pop();
  };
  const script = find(".js");
  const style = Object.values(meta.outputs).find((output) => output.cssBundle)?.cssBundle.split("/").pop();
  const page = readFileSync(join(web, "src", "index.html"), "utf8")
    .replaceAll("{{script}}", script)
    .replaceAll("{{style}}", style);
  // Relative, so that a proxy may serve the page below any path.
  writeFileSync(join(out, "index.html"), page.replaceAll("{{root}}", "./"));
  writeFileSync(join(out, "thread.html"), page.replaceAll("{{root}}", "../"));
}

/** Licences of the packages whose code is in the bundle. */
function writeLicences(meta) {
  const names = new Set(
    Object.keys(meta.inputs).flatMap((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? []),
  );
  const parts = [...names].sort().map((name) => {
    const folder = join(web, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : "";
    return `${name} ${version} (${license})\n\n${text}`;
  });
  writeFileSync(join(out, "LICENSES.txt"), `${parts.join(`\n\n${"-".repeat(80)}\n\n`)}\n`);
}

/** Put a .gz and a .br beside every text file, so the server compresses nothing at run time. */
function compress() {
  for (const entry of readdirSync(out, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !/\.(js|css|html|svg)$/.test(entry.name)) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    const bytes = readFileSync(path);
    writeFileSync(`${path}.gz`, gzipSync(bytes, { level: 9 }));
    writeFileSync(
      `${path}.br`,
      brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }),
    );
  }
}

const finish = {
  name: "finish",
  setup(plugin) {
    plugin.onStart(() => {
      rmSync(out, { recursive: true, force: true });
      mkdirSync(out, { recursive: true });
    });
    plugin.onEnd((result) => {
      if (result.errors.length) return;
      cpSync(join(web, "src", "favicon.svg"), join(out, "favicon.svg"));
      writePage(result.metafile);
      writeLicences(result.metafile);
      compress();
      writeFileSync(join(out, "build-stamp"), `${sourceHash()}\n`);
    });
  },
};

const options = {
  absWorkingDir: web,
  entryPoints: ["src/main.tsx"],
  entryNames: "app-[hash]",
  chunkNames: "[name]-[hash]",
  outdir: join(out, "assets"),
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  sourcemap: false,
  legalComments: "linked",
  metafile: true,
  logLevel: "warning",
  plugins: [finish],
};

if (process.argv.includes("--watch")) await (await context(options)).watch();
else await build(options);
