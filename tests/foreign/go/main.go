// Command generate asks for one answer over Kafka and prints it as it comes. It shares no code with
// Feedloom: docs/kafka-clients.md is all that it goes by.
package main

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const grace = 10 * time.Second // for a result that says that the deadline passed

func main() {
	brokers := flag.String("brokers", "127.0.0.1:9092", "comma-separated host:port")
	prefix := flag.String("prefix", "", "what the deployment's topics begin with")
	tokens := flag.Int("max-tokens", 64, "tokens at most")
	ttl := flag.Duration("ttl", time.Minute, "when the answer is of no use any more")
	flag.Parse()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(*brokers, ",")...),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err == nil {
		defer client.Close()
		ctx, stop := context.WithTimeout(context.Background(), *ttl+grace)
		defer stop()
		err = generate(ctx, client, *prefix, map[string]any{
			"type":          "GenerationRequest",
			"request_id":    crand.Text(),
			"submit_id":     crand.Text(),
			"created_at_ms": time.Now().UnixMilli(),
			"deadline_ms":   time.Now().Add(*ttl).UnixMilli(),
			"prompt":        strings.Join(flag.Args(), " "),
			"sampling":      map[string]any{"max_tokens": *tokens},
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func generate(ctx context.Context, client *kgo.Client, prefix string, request map[string]any) error {
	chunks, results := prefix+"generation.chunks", prefix+"generation.results"
	// Where both topics end before the request goes out: its answer cannot come earlier.
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, chunks, results)
	if err = errors.Join(err, ends.Error()); err != nil {
		return err
	}
	places := ends.KOffsets()
	reply := rand.Int32N(int32(len(places[chunks])))
	maps.DeleteFunc(places[chunks], func(p int32, _ kgo.Offset) bool { return p != reply })
	client.AddConsumePartitions(places)

	request["reply"] = map[string]any{"partition": reply}
	value, err := json.Marshal(request)
	if err != nil {
		return err
	}
	record := &kgo.Record{
		Topic: prefix + "generation.requests", Key: []byte(request["request_id"].(string)), Value: value,
	}
	for name, text := range map[string]string{
		"ce_specversion": "1.0", "ce_id": crand.Text(), "ce_type": "feedloom.GenerationRequest",
		"ce_source": "generate", "content-type": "application/json",
	} {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: name, Value: []byte(text)})
	}
	if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
		return err
	}

	var answer answer
	shown := ""
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, found := range fetches.Records() {
			var one event
			if string(found.Key) != string(record.Key) {
				continue // somebody else's
			} else if err := json.Unmarshal(found.Value, &one); err != nil {
				return err
			} else if one.SubmitID != request["submit_id"] {
				continue
			}
			if found.Topic == chunks {
				answer.add(one)
				shown = turn(shown, answer.text())
				continue
			}
			// The result is right whatever came before, and nothing comes after it.
			turn(shown, one.Text)
			fmt.Println()
			if one.Error != nil {
				return fmt.Errorf("%s: %s", one.Error.Code, one.Error.Message)
			}
			fmt.Fprintln(os.Stderr, "finished:", one.FinishReason)
			return nil
		}
	}
}

// turn prints what makes text of what is shown: the rest or, where that was replaced, all anew.
func turn(shown, text string) string {
	more, goesOn := strings.CutPrefix(text, shown)
	if !goesOn {
		fmt.Print("\n[replaced]\n")
	}
	fmt.Print(more)
	return text
}
