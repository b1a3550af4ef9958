// Reads documents, a JSON array of them on standard input, with AsyncAPI's own parser, and writes what it says
// of each: `node asyncapi_parser.mjs FOLDER`, where the folder has its node_modules.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";

const require = createRequire(resolve(process.argv[2]) + "/");
const { Parser } = require("@asyncapi/parser");

const parser = new Parser();
const told = [];
for (const document of JSON.parse(readFileSync(0, "utf8"))) {
  const { document: parsed, diagnostics } = await parser.parse(JSON.stringify(document));
  told.push({
    channels: parsed ? parsed.allChannels().all().map((one) => one.address()) : [],
    operations: parsed ? parsed.allOperations().all().map((one) => `${one.action()} ${one.id()}`) : [],
    problems: diagnostics.map(({ code, message, path, severity }) => ({ code, message, path, severity })),
  });
}
process.stdout.write(JSON.stringify(told));
