// A Koa backend that issues and verifies tokens itself with jsonwebtoken and the same JWT_SECRET.
//
//   NODE_PATH=tests/.cache/npm/node_modules JWT_SECRET=... node app.js PORT
//
// GET /issue?id=..&name=..&seconds=..  a token as such a backend makes it
// GET anything else                    what this backend reads from the access_token cookie, and the headers it got
"use strict";

const Koa = require("koa");
const jsonwebtoken = require("jsonwebtoken");

const secret = process.env.JWT_SECRET;
const app = new Koa();

app.use((context) => {
  if (context.path === "/issue") {
    const { id, name, seconds } = context.query;
    context.body = jsonwebtoken.sign({ _id: id, username: name }, secret, { expiresIn: Number(seconds) });
    return;
  }
  const token = context.cookies.get("access_token");
  const seen = { token: token !== undefined, headers: context.headers };
  if (token !== undefined) {
    try {
      seen.claims = jsonwebtoken.verify(token, secret, { algorithms: ["HS256"] });
    } catch (error) {
      seen.error = error.message;
    }
  }
  context.body = seen;
});

app.listen(Number(process.argv[2]), "127.0.0.1");
