// Verifies signatures with the Standard Webhooks library for JavaScript.
//
// In:  one JSON object a line, {id, timestamp, signature, body, secret}; a
//      "whsec_" secret is decoded by the library, any other is its own bytes.
// Out: one JSON object a line, in the same order, {ok, error}.
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

// The library judges timestamps by Date.now and lets nobody pass a clock in.
// Each line is judged at the second it was signed, so that old vectors count.
let now = 0;
Date.now = () => now * 1000;

function judge({ id, timestamp, signature, body, secret }) {
  now = Number(timestamp);
  const format = secret.startsWith("whsec_") ? undefined : "raw";
  try {
    new Webhook(secret, { format }).verify(
      body,
      {
        "webhook-id": id,
        "webhook-timestamp": String(timestamp),
        "webhook-signature": signature,
      },
      { jsonParse: false },
    );
    return { ok: true, error: "" };
  } catch (e) {
    return { ok: false, error: e.message };
  }
}

// Not node:readline, which also ends lines at U+2028 and U+2029.
const lines = readFileSync(0, "utf8").split("\n").filter((l) => l !== "");
for (const line of lines) {
  process.stdout.write(JSON.stringify(judge(JSON.parse(line))) + "\n");
}
