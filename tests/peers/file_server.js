// Serves the files of a folder, reading paths in one of the ways that programs in Node read them:
// `node file_server.js FOLDER PORT WAY`.
//
//   whatwg   the URL class, as fetch-like frameworks do: `\` is `/`, `%2e%2e` is a dot segment
//   legacy   cut at `?`, decode, normalize: the static file server that everybody has written once
//   twice    the same behind something that has decoded already
//   lax      every freedom at once that other platforms take and no program here shows: `;parameters` dropped (Java),
//            `\` as `/`, `%uXXXX`, trailing dots and spaces dropped, letters of either case (IIS, Windows)
"use strict";

const fs = require("fs");
const http = require("http");
const path = require("path");

const [folder, port, way] = process.argv.slice(2);

const decoded = (text) => text.replace(/%([0-9a-f]{2})/gi, (_, digits) => String.fromCharCode(parseInt(digits, 16)));
const asBytes = (text) => Buffer.from(text, "latin1");

const ways = {
  whatwg: (target) => decoded(new URL(target, "http://host").pathname),
  legacy: (target) => path.posix.normalize(decoded(target.split("?")[0])),
  twice: (target) => path.posix.normalize(decoded(decoded(target.split("?")[0]))),
  lax: (target) => {
    let read = target.replace(/^https?:\/\/[^/]*/i, "").split("?")[0];
    read = read.replace(/%u([0-9a-f]{4})/gi, (_, digits) => Buffer.from(String.fromCharCode(parseInt(digits, 16))).toString("latin1"));
    read = decoded(decoded(read)).split("?")[0];
    // Overlong and full-width forms, as old decoders and best-fit tables take them.
    read = read.replace(/[\xc0\xc1][\x80-\xbf]/g, (pair) => String.fromCharCode(((pair.charCodeAt(0) & 1) << 6) | (pair.charCodeAt(1) & 63)));
    read = read.replace(/\xef\xbc([\x81-\xbf])/g, (_, low) => String.fromCharCode(low.charCodeAt(0) - 0x60));
    read = read.replace(/\xef\xbd([\x80-\x9e])/g, (_, low) => String.fromCharCode(low.charCodeAt(0) - 0x20));
    read = read.replace(/\\/g, "/").split("/").map((part) => part.split(";")[0]);
    read = read.map((part) => (/^\.{1,2} *$/.test(part) ? part.trimEnd() : part.replace(/[. ]+$/, "")));
    return path.posix.normalize("/" + read.join("/")).toLowerCase();
  },
};

http.createServer((request, response) => {
  request.resume();
  response.setHeader("Content-Type", "text/plain");
  try {
    let name = asBytes(folder + path.posix.normalize("/" + ways[way](request.url)));
    if (fs.statSync(name).isDirectory()) name = Buffer.concat([name, asBytes("/index.html")]);
    response.end(fs.readFileSync(name));
  } catch {
    response.statusCode = 404;
    response.end("not here");
  }
}).listen(Number(port), "127.0.0.1");
