package registry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/vault"
	"github.com/plinqx/hypha/signature"
)

// The bounds of a webhook's fields.
const (
	DefaultTimeout = 30 * time.Second
	MinTimeout     = time.Second
	MaxTimeout     = time.Minute

	maxName        = 255  // characters
	maxDescription = 4096 // characters
	maxEvents      = 100
	maxPause       = 365 * 24 * time.Hour
)

// apply puts a change into a webhook and lists all that is wrong with it. The vault is
// what its headers may refer to; nil if that is not known.
func (r *Registry) apply(w *hook.Webhook, known *catalog.Vault, c Change) []hook.Detail {
	var problems []hook.Detail
	check := func(path, problem string) {
		if problem != "" {
			problems = append(problems, hook.Detail{Path: path, Message: problem})
		}
	}
	if c.Name != nil {
		check("name", hook.CheckText(*c.Name, 1, maxName, ""))
		w.Name = *c.Name
	}
	if c.Description != nil {
		check("description", hook.CheckText(*c.Description, 0, maxDescription, "\n\t"))
		w.Description = *c.Description
	}
	if c.URL != nil {
		if _, err := r.URLs.CheckURL(*c.URL); err != nil {
			check("url", err.Error())
		}
		w.URL = *c.URL
	}
	if c.Events != nil {
		problems = append(problems, checkEvents(*c.Events)...)
		w.Events = slices.Clone(*c.Events)
	}
	if c.Secret != nil {
		if _, err := signature.ParseSecret(*c.Secret); err != nil {
			check("secret", err.Error())
		}
		if len(w.Secrets) == 0 || w.Secrets[0].Value != *c.Secret {
			w.Secrets = []hook.Secret{{Value: *c.Secret, CreatedAt: r.now()}}
		}
	}
	if c.Signatures != nil {
		versions, wrong := signatureVersions(*c.Signatures)
		problems = append(problems, wrong...)
		w.Signatures = versions
	}
	if c.Headers != nil {
		before := len(problems)
		headers := unmask(*c.Headers, w.Headers)
		for _, p := range egress.CheckHeaders(headers, r.HeaderPrefix) {
			check(p.Path, p.Message)
		}
		if known != nil {
			wrong := slices.Clone(problems[before:]) // a header that can't be has no references
			for _, p := range vault.CheckHeaders(known, headers) {
				if !slices.ContainsFunc(wrong, func(w hook.Detail) bool { return w.Path == p.Path }) && len(p.Path) <= len("headers.")+egress.MaxHeaderNameLength {
					problems = append(problems, p)
				}
			}
		}
		for name, value := range headers {
			if value == Masked && egress.Credential(name) {
				check("headers."+name, "is the mask that answers show, not a value; send the value itself")
			}
		}
		w.Headers = headers
	}
	if c.TimeoutMS != nil {
		lowest, highest := MinTimeout.Milliseconds(), MaxTimeout.Milliseconds()
		if *c.TimeoutMS < lowest || *c.TimeoutMS > highest {
			check("timeoutMs", fmt.Sprintf("must be from %d to %d", lowest, highest))
		} else {
			w.Timeout = time.Duration(*c.TimeoutMS) * time.Millisecond
		}
	}
	if c.Enabled != nil && *c.Enabled != w.Enabled {
		w.Enabled, w.DisabledReason = *c.Enabled, ""
		if !w.Enabled {
			w.DisabledReason = hook.DisabledManual
		}
	}
	if c.PausedUntil != nil && c.PausedUntil.Sub(r.now()) > maxPause {
		check("pausedUntil", "must be within a year; to stop sending for good, disable the webhook")
	}
	return problems
}

// signatureVersions reads the versions that a webhook asks for, and puts them in
// order: as it is a set, the same in another order is no change.
func signatureVersions(given []string) ([]hook.SignatureVersion, []hook.Detail) {
	if len(given) == 0 {
		return nil, []hook.Detail{{Path: "signatures", Message: `must name at least one version, "v1" or "v1a"`}}
	}
	var problems []hook.Detail
	var versions []hook.SignatureVersion
	for i, name := range given {
		path, version := fmt.Sprintf("signatures[%d]", i), hook.SignatureVersion(name)
		switch {
		case version != hook.SignatureV1 && version != hook.SignatureV1a:
			problems = append(problems, hook.Detail{Path: path, Message: `must be "v1" (HMAC-SHA256 with the secret) or "v1a" (ed25519)`})
		case slices.Contains(versions, version):
			problems = append(problems, hook.Detail{Path: path, Message: "is named twice"})
		default:
			versions = append(versions, version)
		}
	}
	slices.Sort(versions)
	return versions, problems
}

func checkEvents(events []string) []hook.Detail {
	if len(events) == 0 {
		return []hook.Detail{{Path: "events", Message: `must name at least one event type; "*" is all of them`}}
	}
	if len(events) > maxEvents {
		return []hook.Detail{{Path: "events", Message: fmt.Sprintf("must name at most %d, and names %d", maxEvents, len(events))}}
	}
	var problems []hook.Detail
	for i, e := range events {
		path := fmt.Sprintf("events[%d]", i)
		switch {
		case !hook.ValidSubscription(e):
			problems = append(problems, hook.Detail{Path: path, Message: `must be an event type (dot-separated segments of A-Z, a-z, 0-9, _ and -, 128 characters at most), a type followed by ".*", or "*"`})
		case slices.Contains(events[:i], e):
			problems = append(problems, hook.Detail{Path: path, Message: "is named twice"})
		}
	}
	return problems
}

// same reports whether two states of a webhook differ in nothing that a change
// can change.
func same(a, b *hook.Webhook) bool {
	return a.Name == b.Name && a.URL == b.URL && slices.Equal(a.Events, b.Events) && a.Enabled == b.Enabled &&
		a.DisabledReason == b.DisabledReason && a.Timeout == b.Timeout && a.Description == b.Description &&
		maps.Equal(a.Headers, b.Headers) && slices.Equal(a.Secrets, b.Secrets) &&
		slices.Equal(a.Signatures, b.Signatures) && slices.Equal(a.SigningKeys, b.SigningKeys)
}

func sorted(problems []hook.Detail) []hook.Detail {
	slices.SortStableFunc(problems, func(a, b hook.Detail) int { return strings.Compare(a.Path, b.Path) })
	return problems
}
