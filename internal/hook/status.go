package hook

// Status is where a delivery stands.
type Status uint8

// The states. The first two are unfinished: they have a due time. A delivery
// that is done can go back to RETRYING when somebody asks for it.
const (
	StatusPending  Status = iota // queued, not tried yet
	StatusRetrying               // tried, and due again
	StatusSuccess                // a 2xx came
	StatusFailed                 // given up
)

var statusNames = [...]string{"PENDING", "RETRYING", "SUCCESS", "FAILED"}

// String is the status as the API shows it.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return "UNKNOWN"
}

// ParseStatus reads what String writes.
func ParseStatus(text string) (Status, bool) {
	for i, name := range statusNames {
		if name == text {
			return Status(i), true
		}
	}
	return 0, false
}

// Done reports whether nothing is due any more.
func (s Status) Done() bool { return s >= StatusSuccess }

// Change is something that happens to a delivery.
type Change uint8

// The changes.
const (
	Succeeded Change = iota // an attempt got a 2xx
	Postponed               // an attempt failed and the schedule goes on
	Exhausted               // an attempt failed and the schedule is at its end
	Expired                 // it grew too old
	Canceled                // somebody canceled it, or deleted its webhook
	Asked                   // somebody asked for it again: one, or all that failed
)

// Next is the table of states: where a change leads, and whether it may happen
// at all. It is the only place that knows. An attempt that ends after its
// delivery was given up is recorded, and changes nothing.
//
//	            Succeeded  Postponed  Exhausted  Expired  Canceled  Asked
//	PENDING     SUCCESS    RETRYING   FAILED     FAILED   FAILED    PENDING
//	RETRYING    SUCCESS    RETRYING   FAILED     FAILED   FAILED    RETRYING
//	SUCCESS     -          -          -          -        -         RETRYING
//	FAILED      -          -          -          -        -         RETRYING, or
//	                                             PENDING if it was never tried
func (s Status) Next(c Change, tried bool) (Status, bool) {
	if c == Asked {
		if tried {
			return StatusRetrying, true
		}
		return StatusPending, true
	}
	if s.Done() {
		return s, false
	}
	switch c {
	case Succeeded:
		return StatusSuccess, true
	case Postponed:
		return StatusRetrying, true
	default:
		return StatusFailed, true
	}
}
