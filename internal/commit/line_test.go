package commit

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// waiting is an accept of a tenant that weighs so much.
func waiting(tenant byte, weight int) *accept {
	return &accept{Accept: &store.Accept{Tenant: id.Tenant{tenant}}, load: load{rows: weight}}
}

func tenants(accepts []*accept) (out []byte) {
	for _, a := range accepts {
		out = append(out, a.Tenant[0])
	}
	return out
}

var nothingElse = load{1 << 30, 1 << 40}

func TestTenantsTakeTurns(t *testing.T) {
	for _, tc := range []struct {
		name   string
		push   map[byte][]int // weights, by tenant in the order of their bytes
		weight int
		want   map[byte]int // how many of the batch are whose
	}{
		{"what fits goes all at once", map[byte][]int{1: repeated(10, 2), 2: {5}}, 100, map[byte]int{1: 10, 2: 1}},
		{"each as much as the other", map[byte][]int{1: repeated(10_000, 1), 2: repeated(1000, 1)}, 1024, map[byte]int{1: 512, 2: 512}},
		{"as weight, not as number", map[byte][]int{1: repeated(1000, 8), 2: repeated(1000, 1)}, 1024, map[byte]int{1: 64, 2: 512}},
		{"who has little goes with the first", map[byte][]int{1: repeated(10_000, 1), 2: repeated(10_000, 1), 3: {1}}, 1024, map[byte]int{3: 1, 1: 512, 2: 511}},
		{"who sends much at once saves up for it", map[byte][]int{1: repeated(10, 2000), 2: repeated(2000, 2)}, 1024, map[byte]int{2: 512}},
		{"and goes alone when it is its turn", map[byte][]int{1: repeated(3, 2000)}, 1024, map[byte]int{1: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLine()
			for tenant := byte(1); tenant < 4; tenant++ {
				for _, weight := range tc.push[tenant] {
					l.push(waiting(tenant, weight))
				}
			}
			got, taken := l.batch(nothingElse, tc.weight, nil)
			sum := 0
			for _, a := range got {
				sum += a.weight()
			}
			if sum != taken.weight() {
				t.Errorf("it says that it takes %d, and takes %d", taken.weight(), sum)
			}
			of := map[byte]int{}
			for _, tenant := range tenants(got) {
				of[tenant]++
			}
			if diff := cmp.Diff(tc.want, of); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func repeated(n, weight int) []int { return slices.Repeat([]int{weight}, n) }

// Over time each has its share, also one that sends much at once; and the order
// of each is kept.
func TestNobodyStarves(t *testing.T) {
	l := newLine()
	for i := range 40 {
		a := waiting(1, 3000)
		a.at = time.Unix(int64(i), 0)
		l.push(a)
	}
	for i := range 60_000 {
		a := waiting(2, 2)
		a.at = time.Unix(int64(i), 0)
		l.push(a)
	}
	of, last := map[byte]int{}, map[byte]time.Time{}
	for range 60 {
		got, _ := l.batch(nothingElse, 2000, nil)
		for _, a := range got {
			of[a.Tenant[0]] += a.weight()
			if a.at.Before(last[a.Tenant[0]]) {
				t.Fatalf("tenant %d: what came later went first", a.Tenant[0])
			}
			last[a.Tenant[0]] = a.at
		}
	}
	if of[1] < of[2]*8/10 || of[1] > of[2]*12/10 {
		t.Errorf("one had %d, the other %d", of[1], of[2])
	}
}

// Whatever is pushed and taken, the line's account is right and nothing is lost.
func TestTheLineKeepsCount(t *testing.T) {
	l := newLine()
	in, out := 0, 0
	var room []*accept
	for round := range 2000 {
		for range rand.IntN(40) {
			a := waiting(byte(1+rand.IntN(5)), 1+rand.IntN(600))
			a.at = time.Unix(int64(round), 0)
			l.push(a)
			in++
		}
		switch rand.IntN(8) {
		case 0:
			room = l.late(time.Unix(int64(round-2), 0), room[:0])
		case 1:
			room = l.all(room[:0])
		default:
			room, _ = l.batch(nothingElse, 4000, room[:0])
		}
		out += len(room)
		rows, n := 0, 0
		for _, q := range l.tenants {
			if q.rows <= 0 || q.head >= len(q.items) {
				t.Fatal("a tenant is in line with nothing")
			}
			rows, n = rows+q.rows, n+1
		}
		inLine := 0
		for q := l.first; q != nil; q = q.next {
			inLine++
		}
		if rows != l.rows || n != inLine || (n == 0) != l.empty() {
			t.Fatalf("%d rows of %d tenants; it says %d of %d", rows, n, l.rows, inLine)
		}
	}
	if out += len(l.all(nil)); out != in {
		t.Errorf("%d went in, %d came out", in, out)
	}
}

func TestLate(t *testing.T) {
	l := newLine()
	at := func(tenant byte, second int64) {
		a := waiting(tenant, 1)
		a.at = time.Unix(second, 0)
		l.push(a)
	}
	for _, second := range []int64{1, 2, 9} {
		at(1, second)
	}
	at(2, 9)
	at(3, 1)
	if got := tenants(l.late(time.Unix(5, 0), nil)); !slices.Equal(got, []byte{1, 1, 3}) {
		t.Errorf("late are those of %v", got)
	}
	if got := tenants(l.all(nil)); !slices.Equal(got, []byte{1, 2}) {
		t.Errorf("in time are those of %v", got)
	}
	if got := l.late(time.Unix(5, 0), nil); len(got) != 0 {
		t.Errorf("of nothing, %d are late", len(got))
	}
}

func TestPaceLearns(t *testing.T) {
	for _, tc := range []struct {
		name        string
		fixed, each time.Duration
		weights     []int
		asked       int
	}{
		{"a usual disk", 2 * time.Millisecond, 30 * time.Microsecond, []int{1, 40, 200, 1000}, 3000},
		{"a slow sync", 50 * time.Millisecond, 25 * time.Microsecond, []int{100, 800, 1500}, 3000},
		{"a slow machine", 3 * time.Millisecond, 300 * time.Microsecond, []int{10, 200, 900}, 2000},
		{"always the same", 10 * time.Millisecond, 25 * time.Microsecond, []int{500}, 600},
		{"one at a time", 5 * time.Millisecond, 25 * time.Microsecond, []int{2}, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPace()
			for range 40 {
				for _, w := range tc.weights {
					p.learn(w, tc.fixed+time.Duration(w)*tc.each)
				}
			}
			want := tc.fixed + time.Duration(tc.asked)*tc.each
			if got := p.expect(tc.asked); got < want*7/10 || got > want*13/10 {
				t.Errorf("%d are expected to take %v (%v and %v each); they take %v", tc.asked, got, p.fixed, p.each, want)
			}
		})
	}
}

// One that hangs does not change for long what is expected.
func TestPaceForgets(t *testing.T) {
	p := newPace()
	for range 50 {
		p.learn(100, 5*time.Millisecond)
	}
	p.learn(100, maxLearned)
	for range 100 {
		p.learn(100, 5*time.Millisecond)
	}
	if got := p.expect(100); got > 20*time.Millisecond {
		t.Errorf("a transaction is expected to take %v", got)
	}
}
