package api

import (
	"testing"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

func TestShareOfTheMemoryForBodies(t *testing.T) {
	type step struct {
		tenant byte
		n      int64 // negative: given back
		want   hook.Code
	}
	const free = hook.Code("")
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"one request may be as large as all there is", []step{{1, 100, free}}},
		{"but not larger", []step{{1, 101, hook.CodeUnavailable}}},
		{"half is a tenant's", []step{{1, 30, free}, {1, 20, free}, {1, 1, hook.CodeRateLimited}}},
		{"and the others have the rest", []step{{1, 50, free}, {1, 1, hook.CodeRateLimited}, {2, 20, free}, {2, 5, free}, {2, 1, hook.CodeRateLimited}, {3, 10, free}}},
		{"whoever has nothing gets in while there is room", []step{{1, 50, free}, {2, 50, free}, {3, 1, hook.CodeUnavailable}}},
		{"what is given back can be taken again", []step{{1, 30, free}, {1, 20, free}, {1, -30, free}, {1, 30, free}, {1, 1, hook.CodeRateLimited}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBodies(100)
			left := map[byte]int64{}
			for i, s := range tc.steps {
				if s.n < 0 {
					b.release(id.Tenant{s.tenant}, -s.n)
				} else if err := b.hold(id.Tenant{s.tenant}, s.n); (err == nil) != (s.want == free) || err != nil && hook.CodeOf(err) != s.want {
					t.Fatalf("step %d: %v, want %q", i, err, s.want)
				} else if err != nil {
					continue
				}
				left[s.tenant] += s.n
			}
			for tenant, n := range left {
				b.release(id.Tenant{tenant}, n)
			}
			if b.taken != 0 || len(b.tenants) != 0 {
				t.Errorf("in the end %d are taken, by %d tenants", b.taken, len(b.tenants))
			}
		})
	}
}
