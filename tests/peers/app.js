// A Koa backend that issues and verifies tokens itself with jsonwebtoken and the same JWT_SECRET.
//
//   NODE_PATH=tests/.cache/npm/node_modules JWT_SECRET=... node app.js PORT
//
// GET /issue?id=..&name=..&seconds=..  a token as such a backend makes it
// POST /api/auth/login               {"_id", "username"}: its own login; the token as its cookie
// POST /api/auth/logout              clears that cookie
// GET anything else                    what this backend reads from the access_token cookie, and the headers it got
"use strict";

const Koa = require("koa");
const jsonwebtoken = require("jsonwebtoken");

const secret = process.env.JWT_SECRET;
const app = new Koa();

const body = async (request) => {
  let text = "";
  for await (const piece of request) text += piece;
  return JSON.parse(text);
};

app.use(async (context) => {
  if (context.method === "POST" && context.path === "/api/auth/login") {
    const { _id, username } = await body(context.req);
    const token = jsonwebtoken.sign({ _id, username }, secret, { expiresIn: "7d" });
    context.cookies.set("access_token", token, { httpOnly: true, maxAge: 7 * 86400 * 1000 });
    context.body = { username };
    return;
  }
  if (context.method === "POST" && context.path === "/api/auth/logout") {
    context.cookies.set("access_token", null);
    context.status = 204;
    return;
  }
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
