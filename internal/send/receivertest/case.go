// Package receivertest plays receivers that misbehave: on a raw socket, so that
// it can send what no HTTP server would. A receiver is a list of steps, written
// in Go or read from a file of cases.
//
// It is for tests alone, and knows nothing of what is tested.
package receivertest

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

// Case is a receiver from a file, with what has to become of an attempt at it.
type Case struct {
	ID     string `json:"id"`
	Why    string `json:"why"`
	Steps  []Step `json:"steps"`
	Expect Expect `json:"expect"`
}

// Expect is what a case asks for.
type Expect struct {
	Attempt      string `json:"attempt"`               // "delivered", "failed", or "delivered or failed"
	EndsWithin   string `json:"ends_within"`           // always "timeoutMs + 1000 ms"
	MaxGrowth    int64  `json:"max_rss_growth_mb"`     // MiB
	MaxStored    int    `json:"stored_body_max_bytes"` // bytes
	MaxBytesRead int64  `json:"max_bytes_read"`        // off the socket; 0 for no limit
	Canary       int    `json:"canary_hits"`           // requests that the canary may get
	Then         string `json:"then"`                  // of what comes after, in words
	Note         string `json:"note"`
}

// Step is one thing that a receiver does; one of its fields is set. Before the
// first step the receiver reads the request, unless that step says otherwise.
// After the last it waits for the next request on the connection, or closes it
// if it has not read this one.
type Step struct {
	// Send sends a text. In it {SELF} stands for the receiver's own host and
	// port, and {CANARY} for those of a server that must not be called.
	Send string `json:"send,omitempty"`
	// Drip sends a text every EveryMS milliseconds, for ever.
	Drip    string `json:"drip,omitempty"`
	EveryMS int    `json:"every_ms,omitempty"`
	// Flood sends a text again and again as fast as it goes, for ever.
	Flood string `json:"flood,omitempty"`
	// PauseMS waits for so many milliseconds.
	PauseMS int `json:"pause_ms,omitempty"`
	// Raw sends a text past TLS, in the midst of its records.
	Raw string `json:"raw,omitempty"`
	// Hold keeps the connection open and does nothing.
	Hold bool `json:"hold,omitempty"`
	// Close closes the connection.
	Close bool `json:"close,omitempty"`
	// HalfClose says that no more will be sent, and goes on reading.
	HalfClose bool `json:"half_close,omitempty"`
	// Reset ends the connection with a TCP reset.
	Reset bool `json:"reset,omitempty"`
	// Keep waits for the next request, as the end of the steps does.
	Keep bool `json:"keep,omitempty"`
	// ReadBytes, as the first step, reads so much instead of the whole request.
	ReadBytes int `json:"read_bytes,omitempty"`
	// Unread, as the first step, reads nothing.
	Unread bool `json:"unread,omitempty"`
	// GzipZeros sends a 200 answer whose body is so many MiB of zeros in gzip,
	// Layers times over (one, if not given).
	GzipZeros int `json:"send_gzip_zeros_mib,omitempty"`
	Layers    int `json:"layers,omitempty"`
	// AllBytes sends the 256 bytes from 0 to 255.
	AllBytes bool `json:"send_bytes_0_255,omitempty"`
	// EchoRequest answers 200 with the request as it came for the body, and
	// with each of its headers under its name with X-Echo- before it.
	EchoRequest bool `json:"echo_request,omitempty"`
	// TLS, before all else, speaks TLS: "ok", "wrong-host", "max1.1",
	// "self-signed", "expired", "huge-chain", "client-certificate" (it wants
	// one), "h2" (chosen for HTTP/2, whatever the steps speak then), "none" (it
	// is said to speak TLS, and the steps speak on the bare socket).
	TLS string `json:"tls,omitempty"`
	// DNS, before all else, gives the receiver a name: "delay30s" resolves
	// after 30 seconds.
	DNS string `json:"dns,omitempty"`
}

// Load reads a file of cases. A kind of step that it doesn't know fails the
// test: what can't be played must not pass.
func Load(tb testing.TB, path string) []Case {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var cases []Case
	if err := d.Decode(&cases); err != nil {
		tb.Fatalf("%s: %v", path, err)
	}
	return cases
}
