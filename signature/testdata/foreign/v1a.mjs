// Verifies v1a signatures with the crypto of Node, as a receiver without a
// library would: once with the whpk_ key, once with the JSON Web Key that the
// server publishes.
//
// In:  one JSON object a line, {id, timestamp, signature, body, whpk, x}.
// Out: one JSON object a line, in the same order, {whpk, jwk}: what each key says.
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

// What stands in front of the 32 bytes of an ed25519 key in DER (RFC 8410).
const spki = Buffer.from("302a300506032b6570032100", "hex");

function judge({ id, timestamp, signature, body, whpk, x }) {
  const content = Buffer.from(`${id}.${timestamp}.${body}`);
  const one = (key) =>
    signature
      .split(" ")
      .filter((entry) => entry.startsWith("v1a,"))
      .some((entry) => verify(null, content, key, Buffer.from(entry.slice(4), "base64")));
  const raw = Buffer.from(whpk.replace(/^whpk_/, ""), "base64");
  return {
    whpk: one(createPublicKey({ key: Buffer.concat([spki, raw]), format: "der", type: "spki" })),
    jwk: one(createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" })),
  };
}

// Not node:readline, which also ends lines at U+2028 and U+2029.
for (const line of readFileSync(0, "utf8").split("\n")) {
  if (line !== "") process.stdout.write(JSON.stringify(judge(JSON.parse(line))) + "\n");
}
