package egress

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Limits of a webhook's own headers; lengths in bytes.
const (
	MaxHeaders           = 32
	MaxHeaderNameLength  = 256
	MaxHeaderValueLength = 4096
	// MaxFilledLength is for a value in which vault secrets were filled in: room for
	// two of the longest, and well within what servers take for all headers.
	MaxFilledLength = 2 * MaxHeaderValueLength
)

// Problem is one thing that is wrong with a webhook's headers.
type Problem struct {
	// Path says where, as a path into the request: "headers" or
	// "headers.X-Name"; a name that is not a token stands quoted, and shortened.
	Path string
	// Message says what is wrong and what to do, for the person who wrote it.
	// It never holds a value.
	Message string
}

// CheckHeaders judges the headers that a webhook adds to its requests, and
// returns all problems in the order of the names, at most one for a name and
// [MaxHeaders]+1 in all; nil if there are none. The prefix is that of the headers
// we set ourselves, such as "X-Plinqx".
func CheckHeaders(headers map[string]string, prefix string) []Problem {
	var problems []Problem
	if len(headers) > MaxHeaders {
		problems = append(problems, Problem{Path: "headers", Message: fmt.Sprintf("has %d headers: remove some, %d are allowed", len(headers), MaxHeaders)})
	}
	spelled := make(map[string]string, len(headers))
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		message := checkHeaderName(name, prefix)
		if message == "" {
			if other, twice := spelled[strings.ToLower(name)]; twice {
				message = fmt.Sprintf("is the same header as %s: names differ in more than case, so keep one", other)
			}
			spelled[strings.ToLower(name)] = name
		}
		if message == "" {
			message = CheckHeaderValue(headers[name])
		}
		if message == "" {
			continue
		}
		if problems = append(problems, Problem{Path: headerPath(name), Message: message}); len(problems) > MaxHeaders {
			break
		}
	}
	return problems
}

func headerPath(name string) string {
	const shown = 64
	if len(name) > shown {
		name = name[:shown] + "..."
	}
	if !httpguts.ValidHeaderFieldName(name) {
		name = strconv.QuoteToASCII(name)
	}
	return "headers." + name
}

// checkHeaderName returns what is wrong with a name, or nothing.
func checkHeaderName(name, prefix string) string {
	switch {
	case name == "":
		return "has an empty name: give it one"
	case len(name) > MaxHeaderNameLength:
		return fmt.Sprintf("has a name longer than %d characters: shorten it", MaxHeaderNameLength)
	case !httpguts.ValidHeaderFieldName(name):
		return "is not a header name (RFC 9110, 5.1): use letters, digits and any of !#$%&'*+-.^_`|~, without spaces or colons"
	}
	// Many servers cannot tell an underscore from a hyphen (CGI turns both into
	// the same variable), so neither do these rules.
	canonical := canonicalHeader(name)
	hasPrefix := func(p string) bool { return strings.HasPrefix(canonical, p) }
	switch {
	case slices.Contains(reservedHeaders(), canonical), slices.ContainsFunc(reservedPrefixes(), hasPrefix),
		hasPrefix(canonicalHeader(prefix) + "-"):
		return "cannot be set by a webhook: it frames or routes the request, asks for another answer, or is set by this server; remove it or use another name"
	}
	return ""
}

// CheckHeaderValue returns what is wrong with a header's value, or nothing. RFC 9110
// section 5.5 allows a space between visible characters; of tabs it says that
// they may be replaced on the way, so they are refused.
func CheckHeaderValue(value string) string {
	if len(value) > MaxHeaderValueLength {
		return fmt.Sprintf("has a value longer than %d bytes: shorten it", MaxHeaderValueLength)
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return "has a value with a character that is not visible ASCII: use letters, digits, punctuation and single spaces between them"
		}
	}
	if strings.Trim(value, " ") != value {
		return "has a value that begins or ends with a space: remove it"
	}
	return ""
}

func canonicalHeader(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// reservedHeaders are the names that a webhook may not set, in lower case.
func reservedHeaders() []string {
	return []string{
		// Framing and the connection (RFC 9110, 7.6; RFC 9112).
		"connection", "expect", "http2-settings", "keep-alive", "te", "trailer",
		"transfer-encoding", "upgrade", "x-transfer-encoding", "early-data",
		"alt-svc", "alt-used",
		// Routing, and who asks on whose behalf.
		"host", "forwarded", "via", "max-forwards", "x-forwarded", "x-host", "x-real-ip",
		"x-client-ip", "x-cluster-client-ip", "x-remote-ip", "x-remote-addr", "x-remote-user",
		"x-proxyuser-ip", "client-ip", "true-client-ip", "fastly-client-ip", "cf-connecting-ip", "cf-connecting-ipv6",
		"cdn-loop", "x-rewrite-url", "x-http-host-override", "x-http-method",
		"x-http-method-override", "x-method-override",
		// What is sent and what is asked for is ours to say: JSON, all of it,
		// unconditionally, and an answer that is stored as it stands.
		"accept-encoding", "range", "if", "date", "user-agent", "set-cookie",
		"traceparent", "tracestate",
		// The transport would repeat a failed POST by itself.
		"idempotency-key", "x-idempotency-key",
		// With these a metadata service gives out its machine's credentials.
		"metadata", "x-google-metadata-request",
	}
}

// reservedPrefixes are the beginnings of names that a webhook may not set, in
// lower case.
func reservedPrefixes() []string {
	return []string{
		"content-", "if-", "proxy-", "sec-", "access-control-",
		"x-forwarded-", "x-original-", "x-envoy-", "x-accel-", "x-middleware-",
		"metadata-", "x-metadata-", "x-aws-ec2-metadata-", "x-aliyun-ecs-metadata-", "x-hypha-", "webhook-",
	}
}

// Credential reports whether the value of a header with this name is likely to be
// a secret, to be masked wherever it is shown. It errs towards masking.
func Credential(name string) bool {
	canonical := canonicalHeader(name)
	for _, part := range []string{
		"auth", "token", "secret", "password", "passwd", "passphrase", "credential",
		"cookie", "signature", "session", "apikey", "accesskey", "bearer", "jwt", "hmac",
	} {
		if strings.Contains(canonical, part) {
			return true
		}
	}
	words := strings.FieldsFunc(canonical, func(r rune) bool { return r == '-' || r == '.' })
	return slices.ContainsFunc(words, func(word string) bool {
		return slices.Contains([]string{"key", "keys", "pass", "pwd", "otp", "sig", "sid"}, word)
	})
}
