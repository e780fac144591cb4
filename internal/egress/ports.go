package egress

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// PortRange is a range of TCP ports, both ends included.
type PortRange struct {
	First, Last uint16
}

// Ports is the set of TCP ports that may be connected to.
type Ports []PortRange

// DefaultPorts returns 80, 443 and 1024-65535: the web's own ports and those
// that an unprivileged server can have. The ports between belong to services
// (mail, shells, file shares) which a forged request could make act.
func DefaultPorts() Ports {
	return Ports{{80, 80}, {443, 443}, {1024, 65535}}
}

// ParsePorts reads a comma-separated list of ports and ranges, such as
// "80,443,1024-65535". Blanks around an element are ignored. All elements that
// cannot be read are reported together.
func ParsePorts(s string) (Ports, error) {
	var ports Ports
	var problems []error
	for element := range strings.SplitSeq(s, ",") {
		element = strings.TrimSpace(element)
		first, last, isRange := strings.Cut(element, "-")
		if !isRange {
			last = first
		}
		f, okFirst := parsePort(first)
		l, okLast := parsePort(last)
		if !okFirst || !okLast || f > l {
			problems = append(problems, fmt.Errorf("%q is not a port or a range of ports: write for example 443 or 1024-65535", element))
			continue
		}
		ports = append(ports, PortRange{First: f, Last: l})
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return ports, nil
}

// Contains reports whether port is in the set.
func (p Ports) Contains(port uint16) bool {
	for _, r := range p {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// String writes the set in the form that [ParsePorts] reads.
func (p Ports) String() string {
	elements := make([]string, len(p))
	for i, r := range p {
		elements[i] = strconv.Itoa(int(r.First))
		if r.Last != r.First {
			elements[i] += "-" + strconv.Itoa(int(r.Last))
		}
	}
	return strings.Join(elements, ",")
}

// parsePort reads a port from 1 to 65535 in its one plain spelling: decimal
// digits, no sign, no leading zero. Other spellings are read differently by
// different parsers.
func parsePort(s string) (uint16, bool) {
	if s == "" || s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }
