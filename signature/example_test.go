package signature_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/plinqx/hypha/signature"
)

// A receiver's handler: read the body once, verify it, answer 2xx quickly, and
// treat a second delivery of one event as done.
func Example_receiver() {
	// From the receiver's configuration. While the secret is being rotated,
	// the new one and the old one.
	verifier, err := signature.NewVerifier([]string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
	if err != nil {
		fmt.Println(err)
		return
	}
	seen := map[string]bool{} // a receiver keeps this in its database

	handler := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2<<20))
		if err != nil {
			http.Error(w, "body not readable", http.StatusBadRequest)
			return
		}
		if err := verifier.Verify(r.Header, body); err != nil {
			// The error is for the receiver's log, not for the sender.
			http.Error(w, "not verified", http.StatusUnauthorized)
			return
		}
		if id := r.Header.Get(signature.HeaderID); !seen[id] {
			seen[id] = true
			fmt.Printf("%s: %s\n", id, body) // or hand it to a queue
		}
		w.WriteHeader(http.StatusNoContent)
	}

	// What the server sends: twice the same event, then a forgery.
	for _, body := range []string{`{"type":"tool.called"}`, `{"type":"tool.called"}`, `{"type":"forged"}`} {
		r := httptest.NewRequest(http.MethodPost, "/hooks", strings.NewReader(body))
		signExample(r.Header, `{"type":"tool.called"}`)
		w := httptest.NewRecorder()
		handler(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// evt_1: {"type":"tool.called"}
	// 204
	// 204
	// 401
}

func signExample(h http.Header, body string) {
	secret, err := signature.ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		fmt.Println(err)
		return
	}
	signer, err := signature.NewSigner(signature.Prefix{}, secret)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := signer.Sign(h, "evt_1", time.Now(), []byte(body)); err != nil {
		fmt.Println(err)
	}
}

// One call is enough where speed does not matter. The errors tell what to look
// at.
func ExampleVerify() {
	const secret = "your-webhook-secret"
	headers := http.Header{}
	headers.Set("webhook-id", "evt_1")
	headers.Set("webhook-timestamp", "1700000000")
	headers.Set("webhook-signature", "v1,Vo5UxaWVvJDY49p0sBHDSMACJLVnLKntpOTIVzk+UyU=")

	err := signature.Verify(headers, []byte(`{"a":1}`), secret)
	switch {
	case errors.Is(err, signature.ErrTooOld):
		fmt.Println("replayed, or this machine's clock is wrong")
	case errors.Is(err, signature.ErrMismatch):
		fmt.Println("another secret, or another body")
	case err != nil:
		fmt.Println(err)
	}
	// Output:
	// replayed, or this machine's clock is wrong
}

// A receiver that shares no secret with the sender verifies v1a with the webhook's
// public key: whpk_, from the webhook itself or from the server's keys.json.
func ExampleVerifier_Verify_publicKey() {
	v, err := signature.NewVerifier([]string{"whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
		signature.WithClock(func() time.Time { return time.Unix(1700000030, 0) }))
	if err != nil {
		fmt.Println(err)
		return
	}
	headers := http.Header{}
	headers.Set("webhook-id", "evt_1")
	headers.Set("webhook-timestamp", "1700000000")
	headers.Set("webhook-signature", "v1a,MJnCdpY/8FnhWw1bUeVB4L1ON8rDIDrC/pzXWYSo6aDSBgOW11+7tuKDRl3/5loHxMp4EN2AYVmbnwdThRUFCA==")

	fmt.Println(v.Verify(headers, []byte(`{"a":1}`)))
	// Output:
	// <nil>
}

// The prefixed pair, for a receiver that was built for it. A clock stands in
// for time.Now here, because the request is an old one.
func ExampleVerifier_VerifyPrefixed() {
	v, err := signature.NewVerifier([]string{"your-webhook-secret-1"},
		signature.WithTolerance(time.Minute),
		signature.WithClock(func() time.Time { return time.Unix(1700000030, 0) }))
	if err != nil {
		fmt.Println(err)
		return
	}
	headers := http.Header{}
	headers.Set("X-Plinqx-Timestamp", "1700000000")
	headers.Set("X-Plinqx-Signature", "14ca8a531ece342f078790e2328d0bd76b227a283eb68973fd79699e460f8957")

	fmt.Println(v.VerifyPrefixed(headers, []byte(`{"a":1}`)))
	// Output:
	// <nil>
}
