// Package rekey seals anew, under the server's current key, what is sealed under
// older ones, while everybody works on; and it says which keys are still needed.
//
// It promises that no change of a secret is lost: only bytes that are still what was
// read are replaced. What it has done is in the store and nowhere else, so it may be
// ended at any point and called again, by several nodes at once too. It must not know
// what a webhook or a vault secret is, but for whom each is sealed.
package rekey

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
)

const (
	// chunk is how many rows are replaced in one transaction: the largest together
	// have 10 MB.
	chunk = 64
	// spare is how long before its deadline a call ends, to say how far it came.
	spare = 5 * time.Second
)

// Store is the part of the store that is needed here.
type Store interface {
	store.Sealed

	RecordAudit(ctx context.Context) error
}

// Options are what a rekeyer needs. Store and Ring are required.
type Options struct {
	Store Store
	Ring  *seal.Ring
	// KeyFile is the file that the ring's keys are from, in which NewKey puts one.
	// Default: they are from elsewhere, and NewKey refuses.
	KeyFile string
	// Logger is told of what can't be opened. Default: nobody is.
	Logger *slog.Logger
}

// Rekeyer is safe for concurrent use.
type Rekeyer struct {
	o Options
	// turn is held by whoever changes keys, or seals anew.
	turn chan struct{}
}

// New makes a rekeyer.
func New(o Options) *Rekeyer {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Rekeyer{o: o, turn: make(chan struct{}, 1)}
}

// Key is a key that the server has, or that something is sealed under.
type Key struct {
	ID seal.KeyID
	// Current says that it seals; Held, that the server has it. One that is in use
	// and not held is missing: what is sealed under it can't be opened.
	Current, Held bool
	// InUse is how much is sealed under it: webhooks, their revisions, and vault
	// secrets. A key that is neither current nor in use is not needed any more.
	InUse int64
}

// Result is what a call came to.
type Result struct {
	// Resealed is how much was sealed anew. Unreadable is how much can't be opened,
	// and stays as it is.
	Resealed, Unreadable int64
	// More says that the call's deadline ended it, and not that all is done.
	More bool
	// Keys are those of the server, the current one first, and any other that is in
	// use.
	Keys []Key
}

// Keys says which keys there are, and how much is sealed under each.
func (r *Rekeyer) Keys(ctx context.Context) ([]Key, error) {
	var keys []Key
	for i, k := range r.o.Ring.IDs() {
		keys = append(keys, Key{ID: k, Current: i == 0, Held: true})
	}
	for _, kind := range store.SealedKinds() {
		counts, err := r.o.Store.SealedCounts(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, c := range counts {
			k, ok := seal.KeyOf(c.Head[:])
			if !ok {
				continue // it was not sealed by any key
			}
			i := slices.IndexFunc(keys, func(key Key) bool { return key.ID == k })
			if i < 0 {
				i, keys = len(keys), append(keys, Key{ID: k})
			}
			keys[i].InUse += c.Rows
		}
	}
	return keys, nil
}

// Check is an error if something is sealed under keys that the server does not have.
// It is for whoever starts the server.
func (r *Rekeyer) Check(ctx context.Context) error { return r.check(ctx, r.o.Ring) }

// check is Check for the keys of any ring.
func (r *Rekeyer) check(ctx context.Context, ring *seal.Ring) error {
	var lost []string
	for _, kind := range store.SealedKinds() {
		heads, err := r.o.Store.SealedHeads(ctx, kind)
		if err != nil {
			return fmt.Errorf("look which keys are in use: %w", err)
		}
		for _, head := range heads {
			if k, ok := seal.KeyOf(head[:]); ok && !ring.Has(k) && !slices.Contains(lost, k.String()) {
				lost = append(lost, k.String())
			}
		}
	}
	if len(lost) == 0 {
		return nil
	}
	var held []string
	for _, k := range ring.IDs() {
		held = append(held, k.String())
	}
	return fmt.Errorf("there are secrets that are sealed under the key %s, which is not among the server's secret keys (those are %s); give it that key too, behind the one that is to seal",
		strings.Join(lost, ", "), strings.Join(held, ", "))
}

// Rekey seals anew what is not sealed under the current key. Where ctx has a
// deadline, it ends some seconds before it; called again, it goes on.
func (r *Rekeyer) Rekey(ctx context.Context) (*Result, error) {
	release, err := r.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	out := &Result{}
	if err := r.record(ctx, hook.AuditRekeyed); err != nil {
		return nil, err
	}
	current := r.o.Ring.Current().Head()
	for _, kind := range store.SealedKinds() {
		heads, err := r.o.Store.SealedHeads(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, head := range heads {
			if bytes.Equal(head[:], current) || out.More {
				continue
			}
			if err := r.reseal(ctx, store.SealedQuery{Kind: kind, Head: head, Limit: chunk}, out); err != nil {
				return nil, err
			}
		}
	}
	if out.Keys, err = r.Keys(ctx); err != nil {
		return nil, err
	}
	r.o.Logger.InfoContext(ctx, "sealed secrets anew", "key", r.o.Ring.Current(), "resealed", out.Resealed, "unreadable", out.Unreadable, "more", out.More)
	return out, nil
}

// record tells the audit log of what is about to be done about the current key. It
// comes first, since no transaction has both: nothing is done that the log lacks.
func (r *Rekeyer) record(ctx context.Context, action hook.AuditAction) error {
	return r.o.Store.RecordAudit(audit.Note(ctx, hook.AuditEntry{
		Action: action, Object: hook.AuditObject{Kind: hook.ObjectSecretKey, ID: r.o.Ring.Current().String()},
	}))
}

// take waits for the turn.
func (r *Rekeyer) take(ctx context.Context) (release func(), err error) {
	select {
	case r.turn <- struct{}{}:
		return func() { <-r.turn }, nil
	case <-ctx.Done():
		return nil, hook.Unavailable(time.Second, ctx.Err(), "Secrets are being sealed anew already")
	}
}

// reseal goes through the rows of one kind and key.
func (r *Rekeyer) reseal(ctx context.Context, q store.SealedQuery, out *Result) error {
	deadline, ends := ctx.Deadline()
	for {
		if ends && time.Until(deadline) < spare {
			out.More = true
			return nil
		}
		rows, err := r.o.Store.SealedRows(ctx, q)
		if err != nil {
			return err
		}
		var anew []store.Resealed
		for _, row := range rows {
			q.After = row.SealedPosition
			sealed, err := r.again(row)
			if err != nil {
				out.Unreadable++
				r.o.Logger.WarnContext(ctx, "a secret can't be sealed anew", "what", row.Kind, "where", row.SealedPosition, "err", err)
				continue
			}
			anew = append(anew, store.Resealed{SealedRow: row, New: sealed})
		}
		if len(anew) > 0 {
			n, err := r.o.Store.Reseal(ctx, anew)
			if err != nil {
				return err
			}
			out.Resealed += n
		}
		if len(rows) < q.Limit {
			return nil
		}
	}
}

// again opens a row and seals it under the current key.
func (r *Rekeyer) again(row store.SealedRow) ([]byte, error) {
	owner := catalog.WebhookOwner(row.Tenant, id.Webhook(row.ID))
	if row.Kind == store.SealedVault {
		owner = catalog.VaultOwner(row.Tenant, id.VaultSecret(row.ID), row.Name)
	}
	plain, err := r.o.Ring.Open(row.Sealed, owner)
	if err != nil {
		return nil, err
	}
	return r.o.Ring.Seal(plain, owner)
}

// maxKeys is how many keys a file may have for one more to be put there: each is
// tried for nothing, and a file that grew without end would not be read any more.
const maxKeys = 16

// NewKey makes a key, puts it before the others in the key file, and seals under it
// from now on. What is sealed under the others is for Rekey. A crash leaves a file
// with all keys that anything is sealed under.
func (r *Rekeyer) NewKey(ctx context.Context) (seal.KeyID, error) {
	if r.o.KeyFile == "" {
		return seal.KeyID{}, hook.Conflict("The server's secret keys are given to it; put a new one before the others there, as the documentation says, and start it again")
	}
	release, err := r.take(ctx)
	if err != nil {
		return seal.KeyID{}, err
	}
	defer release()
	// Somebody may have edited the file since it was read.
	held, err := seal.ReadFile(r.o.KeyFile)
	if err != nil {
		return seal.KeyID{}, err
	}
	inFile, err := seal.New(held...)
	if err != nil {
		return seal.KeyID{}, err
	}
	if err := r.check(ctx, inFile); err != nil {
		return seal.KeyID{}, fmt.Errorf("%s: %w", r.o.KeyFile, err)
	}
	if len(held) >= maxKeys {
		return seal.KeyID{}, hook.Conflict("The server's file of keys has %d; take those out that are not in use, and start it again", len(held))
	}
	if err := r.record(ctx, hook.AuditSecretKeyCreated); err != nil {
		return seal.KeyID{}, err
	}
	all, err := seal.AddKey(r.o.KeyFile)
	if err != nil {
		return seal.KeyID{}, err
	}
	if err := r.o.Ring.Replace(all...); err != nil {
		return seal.KeyID{}, err
	}
	current := r.o.Ring.Current()
	r.o.Logger.InfoContext(ctx, "secrets are sealed under a new key from now on", "key", current, "file", r.o.KeyFile)
	return current, nil
}
