// Reads an array of AsyncAPI documents and prints, for each, an array of what is wrong with it.
import { readFileSync } from "node:fs";
import { AvroSchemaParser } from "@asyncapi/avro-schema-parser";
import { Parser } from "@asyncapi/parser";

const WARNING = 1;
const parser = new Parser({ schemaParsers: [AvroSchemaParser()] });
const found = [];
for (const document of JSON.parse(readFileSync(0, "utf8"))) {
  const { diagnostics } = await parser.parse(document);
  const wrong = diagnostics.filter(({ severity }) => severity <= WARNING);
  found.push(wrong.map(({ path, message }) => `${path.join(".")}: ${message}`));
}
console.log(JSON.stringify(found));
