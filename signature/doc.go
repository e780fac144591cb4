// Package signature signs webhook requests and verifies them. The server signs
// every attempt with it; a receiver imports it to check what arrives.
//
// A request carries two independent signatures of the same body:
//
//   - Standard Webhooks 1.0: webhook-id, webhook-timestamp, webhook-signature.
//     It covers the id, the time and the body, so a receiver that has verified
//     it may also trust the id to tell repeated deliveries apart. See
//     https://www.standardwebhooks.com, "Signature scheme".
//   - The prefixed pair: X-Plinqx-Timestamp and X-Plinqx-Signature (and
//     X-Plinqx-Signature-Previous while a secret is being rotated). It covers
//     the time and the body, not the id.
//
// The first may be symmetric (v1, HMAC-SHA256 with a secret that both sides
// have), asymmetric (v1a, ed25519: the sender signs with a whsk_ key that nobody
// else has, and a receiver checks with the whpk_ key, which anyone may know), or
// both.
//
// Prefer [Verify], which checks the first. Hand it the body's bytes exactly as
// they were read: a body that was parsed and serialised again does not verify.
//
// The package promises that what it signs has one reading only, that an error
// or a log line never holds a secret, and that comparisons take the same time
// wherever two values differ. It imports the standard library alone, and must
// not know how secrets are stored, rotated or sealed, nor how a request is
// sent.
package signature
