// Reads answers, given as JSON on standard input: the other half of tests/web/test_calls.py.
import { readFileSync } from "node:fs";
import { said } from "../src/log/calls";
import type { RequestState } from "../src/log/state";

interface Case {
  text: string;
  tools: string[];
  forced: boolean;
  model: string;
}

const cases = JSON.parse(readFileSync(0, "utf8")) as Case[];
const read = ({ text, ...request }: Case) => {
  const of = request as unknown as RequestState;
  // What is shown while more text comes, for every beginning of it.
  const growing = Array.from(text, (_, at) => said([...text].slice(0, at).join(""), of, false).text);
  return { ...said(text, of, true), growing };
};
process.stdout.write(JSON.stringify(cases.map(read)));
