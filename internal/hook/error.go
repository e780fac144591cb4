package hook

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code says what kind of error reached a caller. The codes are part of the
// API's contract; docs/errors.md explains each.
type Code string

// The codes.
const (
	CodeValidation           Code = "VALIDATION_ERROR"
	CodeUnauthorized         Code = "UNAUTHORIZED"
	CodeForbidden            Code = "FORBIDDEN"
	CodeNotFound             Code = "NOT_FOUND"
	CodeMethodNotAllowed     Code = "METHOD_NOT_ALLOWED"
	CodeConflict             Code = "CONFLICT"
	CodePayloadTooLarge      Code = "PAYLOAD_TOO_LARGE"
	CodeUnsupportedMediaType Code = "UNSUPPORTED_MEDIA_TYPE"
	CodeRateLimited          Code = "RATE_LIMITED"
	CodeInternal             Code = "INTERNAL_ERROR"
	CodeUnavailable          Code = "UNAVAILABLE"
)

// Error is an error that a caller may see. Message and Details are safe to
// show; Cause is for the log alone.
type Error struct {
	Code    Code
	Message string
	Details []Detail
	// RetryAfter is when to come back, on CodeRateLimited and CodeUnavailable.
	RetryAfter time.Duration
	Cause      error
}

// Detail is one thing wrong with a request, and where.
type Detail struct {
	Path    string `json:"path"` // "url", "events[2]", "headers.X-Tag"
	Message string `json:"message"`
}

// Error is the message, and the cause where there is one: it is meant for logs.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Code, e.Message)
	for _, d := range e.Details {
		fmt.Fprintf(&b, "; %s: %s", d.Path, d.Message)
	}
	if e.Cause != nil {
		fmt.Fprintf(&b, ": %v", e.Cause)
	}
	return b.String()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is makes errors.Is(err, &Error{Code: c}) ask for a code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// CodeOf is the code of an error: CodeInternal for one that is not an *Error.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// NotFound is the answer for what is not there in this tenant. It says the same
// for another tenant's thing and for no thing at all.
func NotFound(what string) *Error {
	return &Error{Code: CodeNotFound, Message: what + " not found"}
}

// Invalid is a validation error with all that was wrong.
func Invalid(details ...Detail) *Error {
	return &Error{Code: CodeValidation, Message: "The request is not valid; see details", Details: details}
}

// Conflict is an error for what stands against something that is there.
func Conflict(format string, args ...any) *Error {
	return &Error{Code: CodeConflict, Message: fmt.Sprintf(format, args...)}
}

// Unavailable is an error for what can't be done now and can be tried again.
func Unavailable(retryAfter time.Duration, cause error, format string, args ...any) *Error {
	return &Error{Code: CodeUnavailable, Message: fmt.Sprintf(format, args...), RetryAfter: retryAfter, Cause: cause}
}
