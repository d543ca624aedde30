// Answers with what a program in Node sees of a request: `node seen.js PORT`. An upgrade gets its 101 and then the
// same, and the connection ends.
"use strict";

const http = require("http");

const seen = (request) => JSON.stringify({
  headers: request.headers, // what programs read
  raw: request.rawHeaders,
  trailers: request.trailers,
});

const server = http.createServer((request, response) => {
  request.resume();
  request.on("end", () => {
    response.setHeader("Content-Type", "application/json");
    response.end(seen(request));
  });
});

server.on("upgrade", (request, socket) => {
  socket.on("error", () => {});
  socket.end(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" + seen(request),
  );
});

server.listen(Number(process.argv[2]), "127.0.0.1");
