// Checks JSON against the types of Stripe's own package, with the TypeScript compiler.
//
//   node stripe.mjs DIR < [{type: "BalanceTransaction", json: {...}}, ...]
//
// DIR is where this folder's packages are installed. Prints a JSON list of what is wrong, [] when all is well:
// wrong types and literals, fields that are missing, fields that Stripe does not have.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const dir = process.argv[2];
const require = createRequire(join(dir, "package.json"));
const ts = require("typescript");
const { ApiVersion } = await import(join(dir, "node_modules/stripe/esm/apiVersion.js"));

const checks = JSON.parse(readFileSync(0, "utf8"));
const wrong = [];
if (ApiVersion !== "2026-10-28.endive") wrong.push(`Stripe's package speaks ${ApiVersion}`);

const statements = checks.map(({ type, json }, index) => {
  // Types such as ApiList<BalanceTransaction> name others of Stripe's.
  const name = type.replace(/\b([A-Z]\w+)/g, "Stripe.$1");
  return `export const value${index + 1}: ${name} = ${JSON.stringify(json, null, 1)};`;
});
const source = `import type Stripe from "stripe";\n${statements.join("\n")}\n`;

const options = {
  exactOptionalPropertyTypes: true,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  noEmit: true,
  skipLibCheck: true,
  strict: true,
  target: ts.ScriptTarget.ES2022,
  types: [],
};
const host = ts.createCompilerHost(options);
const path = join(dir, "check.mts");
const real = { fileExists: host.fileExists, readFile: host.readFile, getSourceFile: host.getSourceFile };
host.fileExists = (name) => name === path || real.fileExists(name);
host.readFile = (name) => (name === path ? source : real.readFile(name));
host.getSourceFile = (name, ...rest) =>
  name === path ? ts.createSourceFile(name, source, ts.ScriptTarget.ES2022, true) : real.getSourceFile(name, ...rest);

const program = ts.createProgram([path], options, host);
const file = program.getSourceFile(path);
for (const diagnostic of [...program.getOptionsDiagnostics(), ...ts.getPreEmitDiagnostics(program, file)]) {
  const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, "\n");
  const statement = diagnostic.start === undefined ? "" : source.slice(0, diagnostic.start).split("export const ").length - 1;
  wrong.push(`${checks[statement - 1]?.type ?? ""} (value ${statement}): ${text}`);
}
console.log(JSON.stringify(wrong));
