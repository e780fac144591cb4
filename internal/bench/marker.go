package bench

import (
	"bytes"
	"fmt"
)

// A marker is what an event carries in its data so that the receiver knows it
// again: which run it belongs to, its number in that run, and when its publish
// began. Its text has a fixed width, so that a prebuilt request is patched in
// place:
//
//	{"bench":"rrrrrrrr-nnnnnnnnnn-ttttttttttttttttttt","pad":"…"}
//
// with the run in hexadecimal and the number and the time (Unix nanoseconds) in
// decimal digits.
type marker struct {
	run    uint32
	number uint64
	sentAt int64
}

const (
	markerKey = `"bench":"`
	dataHead  = `{` + markerKey
	dataPad   = `","pad":"`
	dataTail  = `"}`

	runDigits    = 8
	numberDigits = 10
	timeDigits   = 19
	markerLen    = runDigits + 1 + numberDigits + 1 + timeDigits

	// minPayload is the size of data around an empty padding, rounded up to a
	// number that one can remember.
	minPayload = 64

	// maxNumber is the highest event number of a run. The digits hold more;
	// this bounds the page tables of the receiver's bitmaps.
	maxNumber = 1<<32 - 1
)

// put writes m's text over dst[:markerLen].
func (m marker) put(dst []byte) {
	const hexDigits = "0123456789abcdef"
	for i, v := runDigits-1, m.run; i >= 0; i, v = i-1, v>>4 {
		dst[i] = hexDigits[v&15]
	}
	dst[runDigits] = '-'
	putDecimal(dst[runDigits+1:runDigits+1+numberDigits], m.number)
	dst[runDigits+1+numberDigits] = '-'
	putDecimal(dst[markerLen-timeDigits:markerLen], uint64(m.sentAt))
}

func putDecimal(dst []byte, v uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = byte('0' + v%10)
		v /= 10
	}
}

// findMarker looks for a marker anywhere in body. Bodies are not parsed as
// JSON: data travels byte for byte, and a search costs next to nothing.
func findMarker(body []byte) (marker, bool) {
	at := bytes.Index(body, []byte(markerKey))
	if at < 0 || len(body) < at+len(markerKey)+markerLen {
		return marker{}, false
	}
	text := body[at+len(markerKey):][:markerLen]
	var m marker
	for _, c := range text[:runDigits] {
		switch {
		case c >= '0' && c <= '9':
			m.run = m.run<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			m.run = m.run<<4 | uint32(c-'a'+10)
		default:
			return marker{}, false
		}
	}
	number, ok1 := decimal(text[runDigits+1 : runDigits+1+numberDigits])
	sentAt, ok2 := decimal(text[markerLen-timeDigits:])
	if !ok1 || !ok2 || text[runDigits] != '-' || text[runDigits+1+numberDigits] != '-' {
		return marker{}, false
	}
	m.number, m.sentAt = number, int64(sentAt)
	return m, true
}

func decimal(digits []byte) (uint64, bool) {
	var v uint64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, true
}

// formatRun is a run's name in the receiver's control requests.
func formatRun(run uint32) string { return fmt.Sprintf("%08x", run) }

// appendData appends an event's data of exactly size bytes, with room for a
// marker, and returns where the marker belongs. The padding is not one letter
// repeated, so that nothing that compresses is flattered by it.
func appendData(dst []byte, size int) (data []byte, markerAt int) {
	dst = append(dst, dataHead...)
	markerAt = len(dst)
	dst = append(dst, make([]byte, markerLen)...)
	marker{}.put(dst[markerAt:])
	dst = append(dst, dataPad...)
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	state := uint32(0x9e3779b9)
	for range size - len(dataHead) - markerLen - len(dataPad) - len(dataTail) {
		state ^= state << 13
		state ^= state >> 17
		state ^= state << 5
		dst = append(dst, letters[state>>26])
	}
	return append(dst, dataTail...), markerAt
}
