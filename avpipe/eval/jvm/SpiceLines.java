import edu.anu.spice.Evaluation;
import edu.anu.spice.SceneGraph;
import edu.anu.spice.SpiceParser;
import edu.anu.spice.TupleFilter;
import edu.anu.spice.TupleSet;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.json.simple.JSONValue;

/**
 * SPICE, one line at a time: a JSON value in, a JSON value out.
 *
 * <pre>
 *   "a brown dog"        the caption's tuples:                 [["dog","brown"],["dog"]]
 *   [[...], [...]]       those of a candidate, then those of all of its references together: the scores of each
 *                        category, {"All":{"f":0.5,"pr":..,"re":..,"tp":..,"fp":..,"fn":..},"Object":{...},...}
 * </pre>
 *
 * What it calls is SPICE 1.0 as published, in the order of its own main program. That one cannot be used: it prints its
 * results by a JavaScript engine, which Java has not had since version 15, says nothing until all captions are parsed,
 * and keeps every parse in memory.
 */
public final class SpiceLines extends SpiceParser {
    private static final Map<String, TupleFilter> CATEGORIES = new LinkedHashMap<>();

    static {
        CATEGORIES.put("Object", TupleFilter.objectFilter);
        CATEGORIES.put("Attribute", TupleFilter.attributeFilter);
        CATEGORIES.put("Relation", TupleFilter.relationFilter);
        CATEGORIES.put("Cardinality", TupleFilter.cardinalityFilter);
        CATEGORIES.put("Color", TupleFilter.colorFilter);
        CATEGORIES.put("Size", TupleFilter.sizeFilter);
    }

    private SpiceLines() {
        super(null, 1, true); // no cache on disk, one thread, synonyms
    }

    public static void main(String[] arguments) throws IOException {
        PrintStream answers = new PrintStream(new FileOutputStream(FileDescriptor.out), false, "UTF-8");
        System.setOut(System.err); // whatever the libraries have to say
        BufferedReader questions = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        SpiceLines spice = new SpiceLines();
        for (String line = questions.readLine(); line != null; line = questions.readLine()) {
            answers.print(JSONValue.toJSONString(spice.answer(JSONValue.parse(line))) + "\n");
            answers.flush();
        }
    }

    private Object answer(Object question) {
        if (question instanceof String) {
            String caption = (String) question;
            return generateTuples(Collections.singletonList(caption)).get(caption);
        }
        List<?> sides = (List<?>) question;
        SceneGraph candidate = graph(sides.get(0));
        SceneGraph reference = graph(sides.get(1));
        Map<String, Evaluation> scores = new LinkedHashMap<>();
        scores.put("All", new Evaluation(new TupleSet(candidate), new TupleSet(reference), false, true));
        for (Map.Entry<String, TupleFilter> category : CATEGORIES.entrySet()) {
            TupleFilter filter = category.getValue();
            TupleSet ours = new TupleSet(candidate, filter);
            scores.put(category.getKey(), new Evaluation(ours, new TupleSet(reference, filter), true, true));
        }
        return scores;
    }

    private SceneGraph graph(Object tuples) {
        SceneGraph graph = new SceneGraph(synonyms, true);
        for (Object tuple : (List<?>) tuples) {
            ArrayList<String> words = new ArrayList<>();
            for (Object word : (List<?>) tuple) {
                words.add((String) word);
            }
            graph.addTuple(words);
        }
        return graph;
    }
}
