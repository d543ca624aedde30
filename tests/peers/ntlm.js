// An Express backend behind express-ntlm, which logs the connection in and accepts everybody: there is no domain to ask.
//
//   NODE_PATH=tests/.cache/npm/node_modules node ntlm.js PORT
"use strict";

const express = require("express");
const ntlm = require("express-ntlm");

const app = express();
app.use(ntlm());
app.use((request, response) => {
  response.json({ ntlm: request.ntlm.UserName, person: request.headers["x-forwarded-user"] || null });
});
app.listen(Number(process.argv[2]), "127.0.0.1");
