package hook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// VaultSecret is a value that a tenant keeps by name, for the headers of its
// webhooks to refer to. Nobody is shown the value again.
type VaultSecret struct {
	ID     id.VaultSecret
	Tenant id.Tenant
	Name   string
	// Revision counts the changes, from 1.
	Revision    int64
	Description string
	Value       string
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// MaxVaultName is how long the name of a vault secret may be.
const MaxVaultName = 64

// ValidVaultName reports whether a text can name a vault secret: 1 to MaxVaultName
// of A-Z, a-z, 0-9, _ and -.
func ValidVaultName(name string) bool {
	return len(name) > 0 && len(name) <= MaxVaultName && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-'
	})
}

// A reference to a vault secret stands in a header's value as {{vault.NAME}}.
const (
	referenceStart = "{{"
	referenceWord  = "vault"
	referenceEnd   = "}}"
)

// Template is a header's value that may hold references to vault secrets. Two
// braces that do not begin a reference are text like any other.
type Template struct {
	parts []templatePart
}

// templatePart is a text, or the name of a secret.
type templatePart struct {
	text, name string
}

// ParseTemplate reads a header's value. The error is for whoever wrote it: what
// begins as a reference does, in whatever spelling, must be one.
func ParseTemplate(value string) (Template, error) {
	var t Template
	text := 0 // where the text begins that no part has yet
	for at := 0; ; {
		i := strings.Index(value[at:], referenceStart)
		if i < 0 {
			break
		}
		start := at + i
		inner := start + len(referenceStart)
		if !likeReference(value[inner:]) {
			at = start + 1 // of three braces, the last two may begin one
			continue
		}
		name, _, closed := strings.Cut(value[inner:], referenceEnd)
		plain, begins := strings.CutPrefix(name, referenceWord+".")
		if !closed || !begins || !ValidVaultName(plain) {
			return Template{}, fmt.Errorf("has something that is nearly a reference to a vault secret: write {{vault.NAME}}, without spaces; NAME has 1 to %d of A-Z, a-z, 0-9, _ and -", MaxVaultName)
		}
		if start > text {
			t.parts = append(t.parts, templatePart{text: value[text:start]})
		}
		t.parts = append(t.parts, templatePart{name: plain})
		at = inner + len(name) + len(referenceEnd)
		text = at
	}
	if text < len(value) {
		t.parts = append(t.parts, templatePart{text: value[text:]})
	}
	return t, nil
}

// likeReference reports whether what follows two braces was meant as a reference:
// the word, and none that it only begins.
func likeReference(s string) bool {
	s = strings.TrimLeft(s, " \t")
	if len(s) < len(referenceWord) || !strings.EqualFold(s[:len(referenceWord)], referenceWord) {
		return false
	}
	rest := s[len(referenceWord):]
	return rest == "" || strings.ContainsRune(".: \t}", rune(rest[0]))
}

// Names are the secrets that a value refers to, each once, in the order of names.
func (t Template) Names() []string {
	var names []string
	for _, p := range t.parts {
		if p.name != "" {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Literal is what of a value is no reference.
func (t Template) Literal() string {
	var b strings.Builder
	for _, p := range t.parts {
		b.WriteString(p.text)
	}
	return b.String()
}

// Fill puts the values of secrets in the place of the references. A value is not
// looked through for more of them. missing names a secret that lookup does not
// know, "" if it knows all.
func (t Template) Fill(lookup func(name string) (value string, ok bool)) (filled, missing string) {
	var b strings.Builder
	for _, p := range t.parts {
		value := p.text
		if p.name != "" {
			var ok bool
			if value, ok = lookup(p.name); !ok {
				return "", p.name
			}
		}
		b.WriteString(value)
	}
	return b.String(), ""
}

// VaultNames are the secrets that headers refer to, each once, in the order of
// names. What is no template refers to none.
func VaultNames(headers map[string]string) []string {
	var names []string
	for _, value := range headers {
		if t, err := ParseTemplate(value); err == nil {
			names = append(names, t.Names()...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
