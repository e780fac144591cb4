package egress

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/plinqx/hypha/internal/egress/dnstest"
)

// TestRebinding dials names whose owner changes what they lead to, asked of a
// real name server by the standard resolver. What is judged is what is dialled,
// each time: there is no moment between for another answer.
func TestRebinding(t *testing.T) {
	// then answers first to the first lookup, and next to all that follow.
	then := func(first, next dnstest.Answer) dnstest.Zone {
		return func(q dnstest.Question) dnstest.Answer {
			if q.Before == 0 {
				return first
			}
			return next
		}
	}
	always := func(a dnstest.Answer) dnstest.Zone { return func(dnstest.Question) dnstest.Answer { return a } }
	at := func(addresses ...string) dnstest.Answer { return dnstest.Answer{Addresses: addresses} }
	// byFamily answers A and AAAA by their own turns.
	byFamily := func(v4, v6 dnstest.Zone) dnstest.Zone {
		return func(q dnstest.Question) dnstest.Answer {
			if q.IPv6 {
				return v6(q)
			}
			return v4(q)
		}
	}
	var hundred []string
	for i := range 100 {
		hundred = append(hundred, fmt.Sprintf("8.8.4.%d", i+1))
	}
	type dial struct {
		reached []string
		blocked bool
	}
	blocked := dial{blocked: true}
	public := dial{reached: []string{"8.8.8.8:80"}}
	failed := dial{}
	for name, test := range map[string]struct {
		zone  dnstest.Zone
		allow []string
		dials []dial
	}{
		"public, then loopback":                      {zone: then(at("8.8.8.8"), at("127.0.0.1")), dials: []dial{public, blocked, blocked}},
		"public, then a metadata service":            {zone: then(at("8.8.8.8"), at("169.254.169.254")), dials: []dial{public, blocked}},
		"public, then Azure's, public by its number": {zone: then(at("8.8.8.8"), at("168.63.129.16")), dials: []dial{public, blocked}},
		"public, then private":                       {zone: then(at("8.8.8.8"), at("10.0.0.1", "192.168.0.1")), dials: []dial{public, blocked}},
		"public, then unspecified":                   {zone: then(at("8.8.8.8"), at("0.0.0.0", "::")), dials: []dial{public, blocked}},
		"public, then loopback by IPv6":              {zone: then(at("8.8.8.8"), at("::1")), dials: []dial{public, blocked}},
		"public, then mapped":                        {zone: then(at("8.8.8.8"), at("::ffff:127.0.0.1", "::ffff:169.254.169.254")), dials: []dial{public, blocked}},
		"public, then NAT64":                         {zone: then(at("8.8.8.8"), at("64:ff9b::a9fe:a9fe")), dials: []dial{public, blocked}},
		"public, then 6to4":                          {zone: then(at("8.8.8.8"), at("2002:7f00:1::")), dials: []dial{public, blocked}},
		"loopback, then public":                      {zone: then(at("127.0.0.1"), at("8.8.8.8")), dials: []dial{blocked, public}},
		"back and forth": {zone: func(q dnstest.Question) dnstest.Answer {
			return at([]string{"8.8.8.8", "127.0.0.1"}[q.Before%2])
		}, dials: []dial{public, blocked, public, blocked}},
		"both in one answer":      {zone: always(at("127.0.0.1", "8.8.8.8", "169.254.169.254")), dials: []dial{public, public}},
		"A public, AAAA loopback": {zone: always(at("8.8.8.8", "::1")), dials: []dial{public}},
		"A loopback, AAAA public": {zone: always(at("127.0.0.1", "2606:4700::1")), dials: []dial{{reached: []string{"[2606:4700::1]:80"}}}},
		"A turns, AAAA fails":     {zone: byFamily(then(at("8.8.8.8"), at("127.0.0.1")), always(dnstest.Answer{Failing: true})), dials: []dial{public, blocked}},
		"A missing, AAAA turns":   {zone: byFamily(always(dnstest.Answer{}), then(at("2606:4700::1"), at("fd00:ec2::254"))), dials: []dial{{reached: []string{"[2606:4700::1]:80"}}, blocked}},
		"an alias, then another":  {zone: then(dnstest.Answer{Aliases: []string{"a.example.net"}, Addresses: []string{"8.8.8.8"}}, dnstest.Answer{Aliases: []string{"localhost"}, Addresses: []string{"127.0.0.1"}}), dials: []dial{public, blocked}},
		"a chain of aliases":      {zone: always(dnstest.Answer{Aliases: []string{"a.example.net", "b.example.org", "metadata.google.internal"}, Addresses: []string{"169.254.169.254"}}), dials: []dial{blocked}},
		"a chain that mixes":      {zone: always(dnstest.Answer{Aliases: []string{"a.example.net", "b.example.org"}, Addresses: []string{"10.0.0.1", "8.8.8.8"}}), dials: []dial{public}},
		"loopback over TCP alone": {zone: always(dnstest.Answer{Truncated: true, Addresses: []string{"127.0.0.1"}}), dials: []dial{blocked}},
		"public over TCP, then private": {zone: func(q dnstest.Question) dnstest.Answer {
			return dnstest.Answer{Truncated: true, Addresses: []string{[]string{"8.8.8.8", "10.0.0.1"}[q.Before/2]}}
		}, dials: []dial{public, blocked}},
		"a hundred public ones": {zone: always(dnstest.Answer{Truncated: true, Addresses: hundred}), dials: []dial{{reached: []string{"8.8.4.1:80", "8.8.4.2:80", "8.8.4.3:80", "8.8.4.4:80", "8.8.4.5:80", "8.8.4.6:80", "8.8.4.7:80", "8.8.4.8:80"}}}},
		"no such name":          {zone: always(dnstest.Answer{Missing: true}), dials: []dial{failed}},
		"no addresses":          {zone: always(dnstest.Answer{}), dials: []dial{failed}},
		"a server that fails":   {zone: always(dnstest.Answer{Failing: true}), dials: []dial{failed}},
		"an allowed one, then its neighbour": {zone: then(at("10.1.2.3"), at("10.1.2.4")), allow: []string{"10.1.2.3/32"},
			dials: []dial{{reached: []string{"10.1.2.3:80"}}, blocked}},
	} {
		t.Run(name, func(t *testing.T) {
			dns := dnstest.Start(t, test.zone)
			var d door
			p := mustNew(t, Options{Resolver: dns.Resolver(), Control: d.control, Allow: prefixes(test.allow...)})
			if _, err := p.CheckURL("http://hooks.example.com/"); err != nil {
				t.Fatal(err)
			}
			if n := dns.Asked("hooks.example.com"); n > 0 {
				t.Errorf("asked %d times before a dial: what it answered then would be known to its owner", n)
			}
			for i, want := range test.dials {
				d.reached = nil
				_, err := p.DialContext(t.Context(), "tcp", "hooks.example.com:80")
				// The resolver orders addresses by how well they can be reached from here.
				slices.Sort(d.reached)
				if !slices.Equal(d.reached, want.reached) {
					t.Errorf("dial %d reached %q, want %q", i+1, d.reached, want.reached)
				}
				if errors.Is(err, ErrBlocked) != want.blocked {
					t.Errorf("dial %d: %v, want blocked: %t", i+1, err, want.blocked)
				}
				if _, unresolved := errors.AsType[*net.DNSError](err); unresolved != (!want.blocked && want.reached == nil) {
					t.Errorf("dial %d: %v", i+1, err)
				}
			}
		})
	}
}
