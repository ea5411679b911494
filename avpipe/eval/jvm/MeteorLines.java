import edu.cmu.meteor.scorer.MeteorConfiguration;
import edu.cmu.meteor.scorer.MeteorScorer;
import edu.cmu.meteor.scorer.MeteorStats;
import edu.cmu.meteor.util.Constants;
import edu.cmu.meteor.util.Normalizer;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.Deque;
import java.util.List;
import java.util.StringTokenizer;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.IntPredicate;
import java.util.regex.Pattern;
import java.util.zip.Deflater;
import java.util.zip.GZIPInputStream;
import java.util.zip.GZIPOutputStream;
import java.util.zip.ZipException;

/**
 * METEOR by several threads: a caption and its references in, its counts out, one line each.
 *
 * <pre>
 *   java ... MeteorLines paraphrase-en.gz THREADS LINES
 *
 *   SCORE ||| a dog ||| two brown dogs ||| a brown dog     references, then the caption; as many lines as LINES says
 *   3.0 2.0 1.0 1.0 ...                                    after the last: 23 counts for each line, in order
 * </pre>
 *
 * What it calls is METEOR 1.5 as published, and what it answers is what METEOR's own main program answers with
 * "-stdio -l en -norm -a paraphrase-en.gz". That one has a single thread, and begins by reading 5 million pairs of
 * phrases. But a pair can match only if both of its phrases stand in captions. Those that do not, as a word or two
 * neighbouring words tell that no caption has, are taken out of the table before METEOR reads it.
 */
public final class MeteorLines {
    private static final Pattern PLAIN = Pattern.compile("[a-z0-9 ]*"); // what Normalizer leaves as it is
    private static final int LINES_A_PAIR = 3; // probability, phrase, phrase
    private static final int BLOCK_BYTES = 1 << 17;
    private static final int TASKS_A_THREAD = 16; // given to it, and results not taken yet

    private final ExecutorService pool;
    private final int most;
    private final BitSet seen = new BitSet(); // hashes of words, and of two neighbouring words, of all captions

    private MeteorLines(int threads) {
        most = threads * TASKS_A_THREAD;
        pool = Executors.newFixedThreadPool(threads, task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true); // ends when main does, for whatever reason
            return thread;
        });
    }

    public static void main(String[] arguments) throws Throwable {
        PrintStream answers = new PrintStream(new FileOutputStream(FileDescriptor.out), false, "UTF-8");
        System.setOut(System.err); // whatever the library has to say
        MeteorLines meteor = new MeteorLines(Integer.parseInt(arguments[1]));
        List<List<ArrayList<String>>> questions = meteor.read(System.in, Integer.parseInt(arguments[2]));
        File table = File.createTempFile("paraphrases", ".gz");
        try {
            meteor.sift(arguments[0], table);
        } catch (EOFException | ZipException error) {
            System.err.println("cannot read " + arguments[0] + ": " + error);
            System.exit(1);
        }
        meteor.score(questions, table, answers);
    }

    /** Lines as words: those of each reference, and last of the caption. */
    private List<List<ArrayList<String>>> read(InputStream in, int lines) throws Throwable {
        BufferedReader reader = new BufferedReader(new InputStreamReader(in, StandardCharsets.UTF_8));
        List<List<ArrayList<String>>> questions = new ArrayList<>();
        Normalizer.normalizeLine("", Constants.LANG_EN, true); // reads the abbreviations that all threads share
        InOrder<List<ArrayList<String>>> split = new InOrder<>(pool, most, question -> {
            for (ArrayList<String> words : question) {
                byte[] text = String.join(" ", words).getBytes(StandardCharsets.UTF_8);
                all(text, 0, text.length, hash -> {
                    seen.set(hash);
                    return true;
                });
            }
            questions.add(question);
        });
        for (int number = 0; number < lines; number++) {
            String line = reader.readLine();
            if (line == null) {
                throw new EOFException("expected " + lines + " lines, got " + number);
            }
            split.add(() -> {
                String[] fields = line.split("\\|\\|\\|");
                List<ArrayList<String>> question = new ArrayList<>();
                for (int field = 1; field < fields.length; field++) {
                    question.add(words(fields[field].trim()));
                }
                return question;
            });
        }
        split.finish();
        return questions;
    }

    private static ArrayList<String> words(String caption) {
        boolean isPlain = PLAIN.matcher(caption).matches();
        String text = isPlain ? caption : Normalizer.normalizeLine(caption, Constants.LANG_EN, true).toLowerCase();
        ArrayList<String> words = new ArrayList<>();
        for (StringTokenizer tokens = new StringTokenizer(text); tokens.hasMoreTokens(); ) {
            words.add(tokens.nextToken());
        }
        return words;
    }

    /** Writes those pairs of a table that can match, in order. */
    private void sift(String from, File to) throws Throwable {
        try (InputStream table = new GZIPInputStream(new FileInputStream(from), BLOCK_BYTES);
                OutputStream sifted = new QuickGzip(new FileOutputStream(to))) {
            InOrder<ByteArrayOutputStream> kept = new InOrder<>(pool, most, some -> some.writeTo(sifted));
            byte[] block = new byte[BLOCK_BYTES];
            int filled = 0;
            for (int more = 0; more >= 0; more = table.read(block, filled, BLOCK_BYTES - filled)) {
                filled += more;
                if (filled == BLOCK_BYTES) {
                    byte[] full = block;
                    int whole = endOfPairs(full, filled);
                    if (whole == 0) {
                        throw new ZipException("expected lines, got " + filled + " bytes without an end");
                    }
                    kept.add(() -> sift(full, whole));
                    block = Arrays.copyOfRange(full, whole, whole + BLOCK_BYTES);
                    filled -= whole;
                }
            }
            if (endOfPairs(block, filled) != filled) {
                throw new EOFException("the last pair of phrases is not whole");
            }
            byte[] last = block;
            int whole = filled;
            kept.add(() -> sift(last, whole));
            kept.finish();
        }
    }

    /** Where the last whole pair of a block ends. */
    private static int endOfPairs(byte[] block, int filled) {
        int lines = 0;
        int end = 0;
        for (int at = 0; at < filled; at++) {
            if (block[at] == '\n' && ++lines % LINES_A_PAIR == 0) {
                end = at + 1;
            }
        }
        return end;
    }

    private ByteArrayOutputStream sift(byte[] block, int whole) {
        ByteArrayOutputStream kept = new ByteArrayOutputStream();
        int[] ends = new int[LINES_A_PAIR];
        int lines = 0;
        int start = 0;
        for (int at = 0; at < whole; at++) {
            if (block[at] == '\n') {
                ends[lines] = at;
                lines = (lines + 1) % LINES_A_PAIR;
                if (lines == 0) {
                    if (all(block, ends[0], ends[1], seen::get) && all(block, ends[1], ends[2], seen::get)) {
                        kept.write(block, start, at + 1 - start);
                    }
                    start = at + 1;
                }
            }
        }
        return kept;
    }

    /** Whether this holds of the hashes of all words in part of a text, and of all two neighbouring words. */
    private static boolean all(byte[] text, int from, int to, IntPredicate holds) {
        int before = 0;
        int word = 0;
        for (int at = from; at <= to; at++) {
            byte letter = at < to ? text[at] : (byte) ' ';
            boolean isBlank = letter == ' ' || letter == '\n' || letter == '\t' || letter == '\r' || letter == '\f';
            if (!isBlank) {
                word = 31 * word + letter;
            } else if (word != 0) {
                if (!holds.test(place(word)) || before != 0 && !holds.test(place(before + 37 * word))) {
                    return false;
                }
                before = word;
                word = 0;
            }
        }
        return true;
    }

    private static int place(int hash) {
        return hash * 0x9E3779B9 >>> 6;
    }

    private void score(List<List<ArrayList<String>>> questions, File table, PrintStream answers) throws Throwable {
        MeteorConfiguration configuration = new MeteorConfiguration();
        configuration.setLanguage("en");
        configuration.setNormalization(Constants.NORMALIZE_KEEP_PUNCT);
        configuration.setParaFileURL(table.toURI().toURL());
        MeteorScorer first = new MeteorScorer(configuration);
        // One a thread, each with a stemmer of its own; what they share is only read.
        ThreadLocal<MeteorScorer> scorers = ThreadLocal.withInitial(() -> new MeteorScorer(first));
        InOrder<MeteorStats> best = new InOrder<>(pool, most, counts -> {
            answers.print(counts + "\n");
            if (answers.checkError()) {
                throw new IOException("nobody reads the answers");
            }
        });
        for (List<ArrayList<String>> question : questions) {
            best.add(() -> best(scorers.get(), question));
        }
        best.finish();
    }

    /** By the best reference, and of equally good ones the first, as METEOR itself chooses. */
    private static MeteorStats best(MeteorScorer scorer, List<ArrayList<String>> question) {
        int references = question.size() - 1;
        MeteorStats best = new MeteorStats();
        best.score = -1;
        for (ArrayList<String> reference : question.subList(0, references)) {
            MeteorStats counts = scorer.getMeteorStats(question.get(references), reference);
            if (counts.score > best.score) {
                best = counts;
            }
        }
        return best;
    }

    private static final class QuickGzip extends GZIPOutputStream {
        QuickGzip(OutputStream out) throws IOException {
            super(out, BLOCK_BYTES);
            def.setLevel(Deflater.BEST_SPEED);
        }
    }

    private interface Taker<T> {
        void take(T result) throws IOException;
    }

    /** Tasks for a pool; this thread takes their results, in the order of the tasks, and no more than so many wait. */
    private static final class InOrder<T> {
        private final Deque<Future<T>> begun = new ArrayDeque<>();
        private final ExecutorService pool;
        private final int most;
        private final Taker<T> taker;

        InOrder(ExecutorService pool, int most, Taker<T> taker) {
            this.pool = pool;
            this.most = most;
            this.taker = taker;
        }

        void add(Callable<T> task) throws Throwable {
            if (begun.size() == most) {
                takeFirst();
            }
            begun.add(pool.submit(task));
        }

        void finish() throws Throwable {
            while (!begun.isEmpty()) {
                takeFirst();
            }
        }

        private void takeFirst() throws Throwable {
            try {
                taker.take(begun.remove().get());
            } catch (ExecutionException error) {
                throw error.getCause();
            }
        }
    }
}
