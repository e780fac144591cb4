// Package openapitest holds exchanges against the API's contract. It is for
// tests: of the handlers, and of the whole server.
//
// It promises that what it lets pass is in the document: the path, the method,
// the status and the shape of the answer, and of requests that were taken, their
// parameters and bodies as well.
package openapitest

import (
	"bytes"
	"io"
	"net/http"
	"sort"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	validation "github.com/pb33f/libopenapi-validator/errors"
)

// Validator holds exchanges against one document. It is safe for one test at a
// time.
type Validator struct {
	v          validator.Validator
	operations []string
}

// New reads an OpenAPI document. A document that is not valid ends the test.
func New(t testing.TB, document []byte) *Validator {
	t.Helper()
	doc, err := libopenapi.NewDocument(document)
	if err != nil {
		t.Fatalf("the OpenAPI document can't be read: %v", err)
	}
	// Credentials are the handlers' to judge.
	v, errs := validator.NewValidator(doc, config.WithFormatAssertions(), config.WithoutSecurityValidation())
	for _, err := range errs {
		t.Errorf("the OpenAPI document can't be used: %v", err)
	}
	if len(errs) > 0 {
		t.FailNow()
	}
	if ok, problems := v.ValidateDocument(); !ok {
		report(t, "the OpenAPI document is not valid", problems)
		t.FailNow()
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		t.Fatalf("the OpenAPI document can't be used: %v", err)
	}
	out := &Validator{v: v}
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			out.operations = append(out.operations, strings.ToUpper(method)+" "+path)
		}
	}
	sort.Strings(out.operations)
	return out
}

// Operations lists "METHOD /path/{param}" of all that the document describes,
// sorted.
func (v *Validator) Operations() []string { return v.operations }

// CheckExchange reports what of an exchange is not in the document. The bodies
// are given apart, since those of req and resp were read already; both are put
// back in place. A request that was refused is not held against the document: it
// was refused for something.
func (v *Validator) CheckExchange(t testing.TB, req *http.Request, reqBody []byte, resp *http.Response, respBody []byte) {
	t.Helper()
	asked := req.Clone(req.Context())
	asked.Body = io.NopCloser(bytes.NewReader(reqBody))
	if asked.Method == http.MethodHead {
		return // as GET, without a body to look at
	}
	if resp.StatusCode < http.StatusBadRequest {
		if ok, problems := v.v.ValidateHttpRequestSync(asked); !ok {
			report(t, "taken, although the contract does not allow it: "+req.Method+" "+req.URL.String(), problems)
		}
		asked.Body = io.NopCloser(bytes.NewReader(reqBody))
	}
	answer := *resp
	answer.Body = io.NopCloser(bytes.NewReader(respBody))
	if ok, problems := v.v.ValidateHttpResponse(asked, &answer); !ok {
		report(t, "answered otherwise than the contract says: "+req.Method+" "+req.URL.String()+": "+resp.Status+"\n"+string(respBody), problems)
	}
}

func report(t testing.TB, what string, problems []*validation.ValidationError) {
	t.Helper()
	var b strings.Builder
	b.WriteString(what)
	for _, p := range problems {
		b.WriteString("\n  " + p.Message + ": " + p.Reason)
		for _, s := range p.SchemaValidationErrors {
			b.WriteString("\n    " + s.FieldPath + ": " + s.Reason)
		}
	}
	t.Error(b.String())
}
