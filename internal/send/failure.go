package send

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
)

const noStatus = "the answer's status is not of three digits"

// failureOf sorts an error of a dial or of what followed it. The message is ours, never the
// error's own text: that would name addresses of the network we stand in.
func failureOf(ctx context.Context, err error, tr *trace, timeout time.Duration) *hook.Failure {
	var (
		dns       *net.DNSError
		network   net.Error
		handshake *handshakeError
		proxy     *egress.ProxyError
		broken    *contain.Error
	)
	switch {
	case errors.As(err, &broken):
		return fail(hook.FailureInternal, "the attempt failed within the server")
	case errors.Is(err, errRequest):
		return fail(hook.FailureInternal, "the request could not be made")
	case ctx.Err() == nil && errors.As(err, &proxy):
		return proxyFailure(proxy, timeout)
	case errors.Is(err, errTimeout):
		return timedOut(tr, timeout)
	case ctx.Err() != nil:
		return fail(hook.FailureInternal, "broken off: the server was stopping")
	case time.Duration(tr.elapsed()) >= timeout:
		// The dial's limit is the attempt's, and may strike before its timer.
		return timedOut(tr, timeout)
	case errors.Is(err, egress.ErrBlocked):
		blocked := fail(hook.FailureBlocked, "the address may not be called")
		blocked.Cause = err
		return blocked
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return fail(hook.FailureDNS, "the host name has no address")
		}
		return fail(hook.FailureDNS, "the host name could not be resolved")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return timedOut(tr, timeout)
	case errors.As(err, &handshake):
		return fail(hook.FailureTLS, "%s", handshakeMessage(handshake.err))
	case !tr.got:
		return fail(hook.FailureConnect, "%s", connectMessage(err))
	case errors.Is(err, errFlood):
		return fail(hook.FailureProtocol, "the receiver sent more than %d KiB for a request, over HTTP/2", maxPerAttempt>>10)
	case errors.Is(err, errHead):
		return fail(hook.FailureProtocol, "the answer's status line and headers are over %d KiB", maxHeader>>10)
	case errors.Is(err, errFields):
		return fail(hook.FailureProtocol, "the answer has more than %d headers", maxFields)
	case errors.Is(err, errStatus):
		return fail(hook.FailureProtocol, "%s", noStatus)
	case garbled(err):
		return fail(hook.FailureProtocol, "what the receiver sent is not valid TLS")
	case alerted(err):
		return fail(hook.FailureConnect, "the receiver ended the connection with a TLS alert")
	case malformed(err):
		return fail(hook.FailureProtocol, "the answer is not valid HTTP/2")
	case errors.Is(err, errNoRoom):
		return fail(hook.FailureConnect, "the receiver takes no request over HTTP/2")
	case refused(err):
		return fail(hook.FailureConnect, "the receiver reset the request without an answer")
	case !tr.answered():
		return fail(hook.FailureConnect, "the receiver closed the connection without an answer")
	case disconnected(err):
		return fail(hook.FailureConnect, "the receiver closed the connection before the answer's headers were complete")
	default:
		return fail(hook.FailureProtocol, "the answer is not valid HTTP")
	}
}

// timedOut says how far the attempt had come.
func timedOut(tr *trace, timeout time.Duration) *hook.Failure {
	doing := "no answer"
	switch {
	case tr.answered():
		doing = "no complete answer"
	case tr.got:
	case tr.tls.Load() != 0:
		doing = "no TLS handshake"
	case tr.proxied && tr.connect.Load() != 0:
		// The attempt's end was noticed before the dial's.
		return proxyFailure(&egress.ProxyError{Reason: egress.ProxySilent}, timeout)
	case tr.connect.Load() != 0:
		doing = "no connection"
	case tr.dns.Load() != 0:
		doing = "no answer from the name servers"
	}
	return fail(hook.FailureTimeout, "%s within %s", doing, timeout)
}

// proxyFailure tells customers whether it is their receiver that should be looked
// at, and nothing of where the proxy is.
func proxyFailure(err *egress.ProxyError, timeout time.Duration) *hook.Failure {
	f := fail(hook.FailureProxy, "the proxy that this server sends through does not work")
	switch err.Reason {
	case egress.ProxyForbids:
		f.Message = "the proxy that this server sends through does not let this address be called"
	case egress.ProxyUnreached:
		f.Message = "the proxy that this server sends through could not reach the receiver"
	case egress.ProxySilent:
		f.Message = fmt.Sprintf("the proxy that this server sends through made no connection to the receiver; it had %s", timeout)
	case egress.ProxyFailed:
	}
	if err.Err != nil {
		f.Cause = err
	}
	return f
}

func connectMessage(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "the host can't be reached"
	default:
		return "the connection failed"
	}
}

func handshakeMessage(err error) string {
	var (
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &host):
		return "the certificate is for another name"
	case errors.As(err, &unknown):
		return "the certificate is signed by an unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired, or is not valid yet"
	case errors.As(err, &verify):
		return "the certificate is not valid"
	case errors.As(err, &record):
		return "the receiver does not speak TLS on this port"
	case disconnected(err):
		return "the receiver closed the connection during the TLS handshake"
	default:
		return "the TLS handshake failed; TLS 1.2 or newer is needed"
	}
}

// disconnected reports whether the other side ended the connection.
func disconnected(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// garbled reports whether TLS came to us broken, once a connection stood.
func garbled(err error) bool {
	var (
		record tls.RecordHeaderError
		local  *net.OpError
	)
	return errors.As(err, &record) || errors.As(err, &local) && local.Op == "local error"
}

// alerted reports whether the other side ended TLS, for whatever reason it had.
func alerted(err error) bool {
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error"
}

// malformed reports whether what came is not HTTP/2.
func malformed(err error) bool {
	var (
		connection http2.ConnectionError
		stream     http2.StreamError
	)
	return errors.As(err, &stream) && !fromPeer(stream) || errors.As(err, &connection) ||
		errors.Is(err, http2.ErrFrameTooLarge) || errors.Is(err, errFrames)
}

// refused reports whether the receiver would not answer over HTTP/2.
func refused(err error) bool {
	var stream http2.StreamError
	return errors.As(err, &stream) && fromPeer(stream)
}

func fromPeer(e http2.StreamError) bool {
	return e.Cause != nil && e.Cause.Error() == "received from peer"
}

func fail(kind hook.FailureKind, format string, args ...any) *hook.Failure {
	return &hook.Failure{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// judge says why a status is a failure; nil if it is none.
func judge(status int) *hook.Failure {
	text := http.StatusText(status)
	switch {
	case status >= 200 && status <= 299:
		return nil
	case status < 0 || status > 999:
		return fail(hook.FailureProtocol, "%s", noStatus) // HTTP/2 lets it through
	case status >= 300 && status <= 399:
		return fail(hook.FailureStatus, "%s: redirects are not followed", strings.TrimSpace(fmt.Sprintf("answered %03d %s", status, text)))
	default:
		return fail(hook.FailureStatus, "%s", strings.TrimSpace(fmt.Sprintf("answered %03d %s", status, text)))
	}
}
