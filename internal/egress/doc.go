// Package egress decides where this server may send requests, and opens the
// connections itself so that the decision cannot be gone around.
//
// It is for two moments. When a webhook is created or changed, [Policy.CheckURL]
// and [CheckHeaders] refuse what can be seen to be wrong: an address that is not
// public, a name that can only mean the inside of somebody's network, a header
// that would reframe the request. When a request is sent,
// [Policy.DialContext] judges the very address that is about to be connected
// to, so a name that pointed to a public host at create and to a private one
// now is stopped all the same.
//
// What it promises:
//
//   - No socket is connected to an address that is neither public nor allowed by
//     the operator; nor, whatever is allowed, to a cloud's metadata service, to
//     the unspecified address, to one of our own listeners, or to an address
//     that the operator denies. Deny wins over allow.
//   - One host has one meaning: what CheckURL judged is what is resolved and
//     dialled. Spellings on which parsers disagree are refused.
//   - Error texts are fit for the customer who registered the webhook. They tell
//     what to change, and nothing about the network that this server stands in.
//
// Where the operator names a proxy ([Options.Proxy]), the first promise is the
// proxy's to keep for what names lead to; it holds for addresses in URLs.
//
// What it must not know: webhooks, tenants, HTTP exchanges, retries, settings'
// names. It imports nothing of this project.
package egress
