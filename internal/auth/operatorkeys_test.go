package auth_test

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
)

func (f *fixture) operatorKey(t *testing.T, k auth.NewKey) *auth.MadeKey {
	t.Helper()
	made, err := f.CreateOperatorKey(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (f *fixture) operator(t *testing.T) *auth.Principal {
	t.Helper()
	p, err := f.Authenticate(t.Context(), operatorKey)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOperatorKeyEndsWhenItSays(t *testing.T) {
	f := newFixture(t)
	made := f.operatorKey(t, auth.NewKey{Name: "short", ExpiresAt: f.clock.Add(time.Minute)})
	if code := f.code(t, made.Secret); code != "" {
		t.Fatalf("a new key: %s", code)
	}
	// What is known of it is not trusted for the second that it may be: it was
	// changed here.
	sooner := f.clock.Add(time.Millisecond)
	if _, err := f.UpdateOperatorKey(t.Context(), made.ID, auth.KeyChange{ExpiresAt: &sooner}); err != nil {
		t.Fatal(err)
	}
	f.clock = sooner
	if code := f.code(t, made.Secret); code != hook.CodeUnauthorized {
		t.Errorf("an expired key: %q", code)
	}
	never := time.Time{}
	if _, err := f.UpdateOperatorKey(t.Context(), made.ID, auth.KeyChange{ExpiresAt: &never}); err != nil {
		t.Fatal(err)
	}
	if code := f.code(t, made.Secret); code != "" {
		t.Errorf("a key whose end was taken away: %s", code)
	}
}

// A request that has read the key before it was deleted does not bring it back.
func TestOperatorKeyIsDeletedWhileItIsRead(t *testing.T) {
	f := newFixture(t)
	made := f.operatorKey(t, auth.NewKey{Name: "leaked"})
	operator := f.operator(t)
	f.store.afterReadKey = func() {
		if err := f.DeleteOperatorKey(t.Context(), operator, made.ID); err != nil {
			t.Error(err)
		}
	}
	f.code(t, made.Secret) // it was let in before
	if code := f.code(t, made.Secret); code != hook.CodeUnauthorized {
		t.Errorf("a deleted key: %q", code)
	}
}

func TestOperatorKeyDoesNotDeleteItself(t *testing.T) {
	f := newFixture(t)
	operator := f.operator(t)
	if err := f.DeleteOperatorKey(t.Context(), operator, operator.Key); hook.CodeOf(err) != hook.CodeConflict {
		t.Errorf("it deleted itself: %v", err)
	}
	if code := f.code(t, operatorKey); code != "" {
		t.Errorf("and is refused: %s", code)
	}
}
