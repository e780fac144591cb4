package postgres

import (
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// How values go to the database and come back. Types are those that pgx knows the
// database's name of, so that statements need not be described first.

// uuid is an id as the database takes it.
func uuid[T ~[16]byte](v T) pgtype.UUID { return pgtype.UUID{Bytes: v, Valid: true} }

// uuidOrNull is an id, NULL for the zero one.
func uuidOrNull[T ~[16]byte](v T) pgtype.UUID {
	return pgtype.UUID{Bytes: v, Valid: [16]byte(v) != [16]byte{}}
}

func uuids[T ~[16]byte](vs []T) []pgtype.UUID {
	out := make([]pgtype.UUID, len(vs))
	for i, v := range vs {
		out[i] = uuid(v)
	}
	return out
}

// sameTenant is a tenant n times: statements that ask by id name it with each.
func sameTenant(tenant id.Tenant, n int) []pgtype.UUID {
	return slices.Repeat([]pgtype.UUID{uuid(tenant)}, n)
}

func text(s string) pgtype.Text       { return pgtype.Text{String: s, Valid: true} }
func textOrNull(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }
func number(n int64) pgtype.Int8      { return pgtype.Int8{Int64: n, Valid: true} }

// millis is how a time is stored.
func millis(t time.Time) int64 { return t.UnixMilli() }

// millisOrNull is a time, NULL for the zero one.
func millisOrNull(t time.Time) pgtype.Int8 { return pgtype.Int8{Int64: millis(t), Valid: !t.IsZero()} }

// fromMillis reads what millisOrNull wrote.
func fromMillis(v pgtype.Int8) time.Time {
	if !v.Valid {
		return time.Time{}
	}
	return time.UnixMilli(v.Int64).UTC()
}

// atMillis reads what millis wrote.
func atMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// failure is what is stored of a failure: NULL for none.
func failure(f *hook.Failure) (kind, message pgtype.Text) {
	if f == nil {
		return kind, message
	}
	return text(string(f.Kind)), text(cleaned(f.Message))
}

// cleaned makes a text of others' one that the database takes: UTF-8 without zeros.
// What a receiver answers may be in the message of a failure.
func cleaned(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

// failureOf reads what failure wrote.
func failureOf(kind, message pgtype.Text) *hook.Failure {
	if !kind.Valid {
		return nil
	}
	return &hook.Failure{Kind: hook.FailureKind(kind.String), Message: message.String}
}
