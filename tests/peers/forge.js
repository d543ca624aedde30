// A second implementation of signed tokens, on Node's own cryptography (OpenSSL) and on jsonwebtoken. It makes keys,
// signs what it is told to, however wrong, and verifies what the gateway has signed.
//
//   NODE_PATH=tests/.cache/npm/node_modules node forge.js < JOBS     one JSON array in, one out
//
// {"do": "key", "type": "ed25519" | "p256" | "rsa"}       a private key, and every way to write the public one down
// {"do": "sign", "alg": .., "key": .., "header": .., "claims": ..}
//                                   a token; `alg` is how it is signed, whatever the header says
// {"do": "verify", "token": .., "jwk": ..} or "secret"     whether it verifies, and its claims
"use strict";

const crypto = require("crypto");
const fs = require("fs");
const jsonwebtoken = require("jsonwebtoken");

const base64url = (bytes) => Buffer.from(bytes).toString("base64url");
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function key({ type }) {
  const pair = {
    ed25519: () => crypto.generateKeyPairSync("ed25519"),
    p256: () => crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }),
    rsa: () => crypto.generateKeyPairSync("rsa", { modulusLength: 2048 }),
  }[type]();
  const pem = pair.publicKey.export({ type: "spki", format: "pem" });
  const der = pair.publicKey.export({ type: "spki", format: "der" });
  const jwk = pair.publicKey.export({ format: "jwk" });
  const lines = pem.trim().split("\n");
  const forms = {
    "PEM": pem,
    "PEM without its final line end": pem.trimEnd(),
    "PEM with CRLF": lines.join("\r\n") + "\r\n",
    "PEM's base64 in one line": lines.slice(1, -1).join(""),
    "PEM's base64 in lines": lines.slice(1, -1).join("\n"),
    "DER": der,
    "JWK": JSON.stringify(jwk),
    "JWK in lines": JSON.stringify(jwk, null, 2),
    "a JWKS of it": JSON.stringify({ keys: [jwk] }),
    "a member of the JWK": jwk.x || jwk.n,
    "that member's bytes": Buffer.from(jwk.x || jwk.n, "base64url"),
    "the point": jwk.y ? Buffer.concat([Buffer.of(4), Buffer.from(jwk.x, "base64url"), Buffer.from(jwk.y, "base64url")]) : der,
  };
  return {
    private: pair.privateKey.export({ type: "pkcs8", format: "pem" }),
    jwk,
    forms: Object.entries(forms).map(([name, bytes]) => [name, Buffer.from(bytes).toString("base64")]),
  };
}

function signature(alg, key, message) {
  switch (alg) {
    case "HS256":
    case "HS384":
    case "HS512":
      return crypto.createHmac(`sha${alg.slice(2)}`, Buffer.from(key, "base64")).update(message).digest();
    case "ES256":
      return crypto.sign("sha256", message, { key, dsaEncoding: "ieee-p1363" });
    case "ES256 in DER":
      return crypto.sign("sha256", message, key);
    case "EdDSA":
      return crypto.sign(null, message, key);
    case "RS256":
      return crypto.sign("sha256", message, key);
    case "PS256":
      return crypto.sign("sha256", message, { key, padding: crypto.constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 });
    default:
      throw new Error(`no such algorithm: ${alg}`);
  }
}

function sign({ alg, key, header, claims }) {
  const message = Buffer.from(`${base64url(text(header))}.${base64url(text(claims))}`);
  return { token: `${message}.${base64url(signature(alg, key, message))}` };
}

function verify({ token, jwk, secret }) {
  const [header, claims, signed] = token.split(".");
  const { alg } = JSON.parse(Buffer.from(header, "base64url"));
  if (alg === "EdDSA") {
    // Which jsonwebtoken does not know.
    const publicKey = crypto.createPublicKey({ key: jwk, format: "jwk" });
    const valid = crypto.verify(null, Buffer.from(`${header}.${claims}`), publicKey, Buffer.from(signed, "base64url"));
    return { valid, claims: JSON.parse(Buffer.from(claims, "base64url")) };
  }
  const publicKey = secret ? Buffer.from(secret, "base64") : crypto.createPublicKey({ key: jwk, format: "jwk" });
  try {
    return { valid: true, claims: jsonwebtoken.verify(token, publicKey, { algorithms: [alg] }) };
  } catch (error) {
    return { valid: false, error: error.message };
  }
}

const jobs = JSON.parse(fs.readFileSync(0, "utf8"));
const done = jobs.map((job) => ({ key, sign, verify })[job.do](job));
process.stdout.write(JSON.stringify(done));
