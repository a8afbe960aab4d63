// Calls a function of /jail/code.js on inputs; a line of JSON per call.
// The code runs in a context of its own, without require, process or this file's names.
"use strict";
const fs = require("fs");
const vm = require("vm");
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const source = fs.readFileSync("/jail/code.js", "utf8");
const scope = vm.createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
vm.runInContext(source, scope);
for (const input of given.inputs) {
  let line;
  try {
    line = vm.runInContext(
      `JSON.stringify({ value: ${given.function}(...${JSON.stringify(input)}) })`,
      scope,
    );
  } catch (error) {
    line = JSON.stringify({ error: String(error && error.name) });
  }
  fs.writeSync(1, String(line) + "\n");
}
