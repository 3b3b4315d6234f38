// Runs the unit tests of the pure modules: bundles each *.test.ts, then hands them to node --test.
// `node test.mjs fold` instead runs test/fold.ts, which reads standard input.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const web = dirname(fileURLToPath(import.meta.url));
const out = mkdtempSync(join(tmpdir(), "everlog-web-"));
const only = process.argv[2];
const wanted = (name) => (only ? name === `${only}.ts` : name.endsWith(".test.ts"));
try {
  await build({
    absWorkingDir: web,
    entryPoints: readdirSync(join(web, "test")).filter(wanted).map((name) => `test/${name}`),
    outdir: out,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    logLevel: "warning",
  });
  const files = readdirSync(out).map((name) => join(out, name));
  const env = { ...process.env, EVERLOG_WEB: web };
  const args = only ? files : ["--test", ...files];
  process.exitCode = spawnSync(process.execPath, args, { stdio: "inherit", env }).status ?? 1;
} finally {
  rmSync(out, { recursive: true, force: true });
}
