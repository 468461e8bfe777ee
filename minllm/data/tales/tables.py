"""People, animals, things, places and weathers: names with everything that must agree with them."""

from __future__ import annotations

from minllm.data.tales.thing import people, table

CHILDREN = people(
    she="""Lily, Mia, Anna, Rosa, Nora, Ella, Ivy, Zoe, Maya, Ruby, Clara, Daisy, Tess, Hana, Lucy, Freya,
    Nina, Amira, Poppy, Sofia, Leila, Greta, Ada, Penny, Iris, Matilda, Yara, Juno, Edith, Olive, Flora, Kiko,
    Marta, Bea, Selma, Alice, Wanda, Priya, Elsa, Holly, Judith, Carmen, Doris, Sunita, Margot, Ingrid, Pearl,
    Esme, Tamsin, Lola, Ursula, Agnes, Bonnie, Cleo, Dinah, Erin, Fatima, Gwen, Hilda, Isla, Jenny, Keiko,
    Linnea, Mabel, Noor, Orla, Petra, Rhea, Saskia, Thea, Una""",
    he="""Tom, Ben, Max, Leo, Sam, Finn, Jack, Oscar, Theo, Omar, Hugo, Noah, Felix, Milo, Otto, Arun, Jonah,
    Peter, Luca, Emil, Toby, Kofi, Barney, Anton, Ravi, Walter, Simon, Dario, Eli, Gus, Henry, Malik, Bruno,
    Casper, Ned, Albert, Ivan, Marco, Jasper, Ollie, Samir, Rory, Kenji, Victor, Wilbur, Nico, Angus, Pablo,
    Stefan, Duncan, Yusuf, Alfie, Boris, Cedric, Diego, Edgar, Farid, Gregor, Hassan, Igor, Jamal, Kurt,
    Lionel, Mateo, Nils, Orson, Philip, Rasmus, Silas, Tariq, Viggo""",
    they="Robin, Sky, Ash, Wren, Remy, Jules, Quinn, Sage",
)

ELDERS = people(
    she="""Grandma, Mum, Aunt Rose, Mrs Hill, Granny Oak, Aunt May, Mrs Brown, Miss Bell, Great-Aunt Dora, Mrs
    Kapoor, Miss Finch, Aunt Tilda, Mrs Marsh, Nana Jo, Miss Amadi, Cousin Vera, Doctor Singh, Captain Gray,
    Nurse Molly, Lady Snow""",
    he="""Grandpa, Dad, Uncle Joe, Mr Green, Old Tim, Uncle Ravi, Mr Potter, Mr Lamb, Uncle Pip, Mr Stone, Mr
    Okafor, Grandad Bert, Mr Winter, Uncle Lars, Mr Bloom, Cousin Rufus, Doctor Park, Captain Drake, Baker
    Jan, Sergeant Pike""",
)

# an animal that may be met, be in trouble and help: what it is good at, and where it lives
ANIMALS = table(
    "cry pronoun gift need deed home*",
    """
    mouse    | squeaked  | she | gnaw through any rope  | got caught in a thick rope   | gnawed through the rope   |
               a hole in the barn, an old boot, a nest of straw
    rabbit   | sniffed   | he  | squeeze under any hedge | rolled under a thick hedge   | squeezed under the hedge  |
               a burrow in the bank, a warm tunnel, the clover field
    robin    | chirped   | he  | fly up to any roof     | landed on a high roof        | flew up to the roof       |
               the holly bush, a nest in the ivy, an old teapot
    hedgehog | snuffled  | he  | walk through thorns    | fell among sharp thorns      | walked into the thorns    |
               a pile of leaves, the log heap, a den of dry moss
    squirrel | chattered | she | climb the tallest tree | got stuck in a treetop       | climbed up to the treetop |
               a hollow beech, the crooked pine, a round nest of twigs
    frog     | croaked   | he  | swim under the weeds   | sank among the water weeds   | swam under the weeds      |
               the lily beds, a ditch full of cress, the shady well
    owl      | hooted    | she | see in the dark        | vanished down a dark cellar  | looked all over the cellar |
               the church tower, a hollow elm, the mill loft
    duck     | quacked   | she | cross deep water       | drifted off into deep water  | paddled out on the water  |
               the tall reeds, the island rushes, a hole in the bank
    mole     | mumbled   | he  | dig up the hardest ground | slid into a crack in the ground | dug beside the crack |
               a long dark tunnel, a mound in the grass, a cellar of his own
    fox      | barked    | he  | run like the wind      | rolled off down a long road  | raced down the road       |
               a den in the heather, the bracken, a sandy bank
    badger   | grunted   | he  | push heavy stones      | was trapped by a heavy stone | pushed the stone aside    |
               a sett among the roots, the old quarry, a cave behind the ferns
    crow     | cawed     | she | search any chimney     | dropped down a tall chimney  | hopped into the chimney   |
               the bell tower, a scarecrow's hat, a dead ash tree
    kitten   | mewed     | she | slip through any gap   | slipped behind an iron fence | slipped through the fence |
               the bakery attic, a basket of wool, a net shed
    puppy    | whined    | he  | follow a scent for miles | was carried off on a cart  | followed the cart         |
               the shepherd's hut, a green kennel, the farm porch
    tortoise | sighed    | he  | wade through thick mud | got stuck in thick mud       | waded into the mud        |
               the greenhouse, a box of hay, the rhubarb patch
    otter | whistled | she | dive to the bottom of a stream | sank to the bottom of a stream | dived into the stream |
               the willow roots, a hut of sticks, the old weir
    beaver   | muttered  | he  | bite through any branch | was pinned under a branch   | bit through the branch    |
               a lodge of logs, the wide dam, the slow green stream
    sparrow  | twittered | she | hop into the narrowest pipe | rolled into a narrow pipe | hopped into the pipe    |
               the rain gutter, a gap in the wall, the station clock
    goat     | bleated   | she | climb the steepest rocks | fell on a steep rock       | climbed up the rock       |
               the high pasture, a stony cave, the cheese dairy
    donkey   | brayed    | he  | pull a loaded cart     | was stuck under a loaded cart | pulled the cart away     |
               the lower stable, the olive yard, a thistle field
    """,
)

# what a child may own: what it is for, how it comes to harm and how it is mended
TOYS = table(
    "use hurt mend",
    """
    kite         | fly it over the roofs   | was torn             | sewed it
    ball         | bounce it on the wall   | was flat             | pumped it up
    boat         | sail it                 | had lost its mast    | carved a new one
    doll         | tell it secrets         | had lost an arm      | stitched it on
    drum         | beat marches on it      | was split            | stretched a new skin over it
    train        | push it along           | had lost a wheel     | screwed on another
    teddy bear   | take it to tea          | had only one ear     | cut a second out of felt
    puppet       | make it dance           | was in a tangle      | untied the knots
    whistle      | blow it                 | was full of mud      | rinsed it out
    lantern      | light up the paths      | was cracked          | put in new glass
    robot        | make it march           | rattled inside       | tightened a screw
    spinning top | set it humming          | had gone blunt       | filed it smooth
    music box    | wind it up              | was full of sand     | shook it clean
    hoop         | roll it down the lane   | had come apart       | wired it together
    umbrella     | twirl it over puddles   | was inside out       | bent it back
    rocket       | launch it at the moon   | had lost its nose    | made one of cork
    telescope    | look for ships          | was all foggy        | polished the lens
    flute        | play it to the sheep    | was cracked          | bound it with thread
    windmill     | watch it spin           | had a broken sail    | glued it on again
    yo-yo        | spin it up and down     | had lost its string  | tied on a new one
    cape         | be a hero in it         | had a ripped hem     | stitched it up
    crown        | rule the garden in it   | was bent             | hammered it round
    trumpet      | wake the street with it | was dented           | beat out the dents
    toy car      | race it downhill        | was scratched        | painted it again
    hobby horse  | gallop about on it      | had lost its mane    | knotted one of wool
    sledge       | ride it down the slope  | creaked              | oiled and waxed it
    """,
)

SECTION_KINDS = table(
    "in spot* sight*",
    """
    park       | in | under the slide, behind the fountain, beside the swings, in the sandpit |
                 a man feeding pigeons, two girls on stilts, a band with three trumpets
    garden     | in | under the cabbages, behind the shed, beside the water butt, among the sunflowers |
                 a row of fat pumpkins, a bee asleep in a tulip, a scarecrow with a tie
    wood       | in | under the ferns, behind a fallen trunk, beside a ring of toadstools, among the brambles |
                 a spotted deer, a woodpecker at work, a path of white stones
    beach      | on | under the upturned dinghy, behind the rocks, beside a tide pool, among the seaweed |
                 a crab a ship with brown sails, a castle with a moat
    pond       | by | under the jetty, behind the bulrushes, beside the flat stone, among the lily pads |
                 a heron on one leg, seven ducklings in a line, a dragonfly as green as glass
    market     | at | under the fish stall, behind the flower cart, beside the cheese barrels, among the melons |
                 a juggler with five apples, a parrot that could count, a mountain of oranges
    farm       | on | under the hay cart, behind the milking shed, beside the pump, among the geese |
                 a tractor with a flat tyre, a calf with wobbly legs, a very proud rooster
    hill       | on | under the lone thorn tree, behind the sheepfold, beside the stone cross, among the heather |
                 a hawk high overhead, smoke from a dozen chimneys, a flock of shaggy sheep
    meadow     | in | under the gate, behind the haystack, beside the cow trough, among the poppies |
                 a hundred white butterflies, a foal rolling over, a cloud of thistledown
    river      | by | under the bridge, behind the ferry hut, beside the stepping stones, among the willows |
                 a barge full of coal, a boy with a fishing rod, a swan with her wings up
    library    | at | under the stairs, behind the tall shelves, beside the globe, among the atlases |
                 a book as big as a door, a cat on the counter, a map of the stars
    station    | at | under the bench, behind the ticket office, beside the red signal, among the suitcases |
                 a soldier with a cello, a guard with a green flag, an engine being washed
    harbour    | by | under the nets, behind the lobster pots, beside the anchor, among the ropes |
                 a seal with long whiskers, a sailor painting a hull, a gull stealing a chip
    orchard    | in | under the ladder, behind the cider press, beside the beehives, among the windfalls |
                 a wasp in a pear, a thrush with a snail, a swing hung from a bough
    playground | in | under the climbing frame, behind the seesaw, beside the bicycle rack, among the tyres |
                 a game of hopscotch, a chalk dragon, a boy hanging upside down
    castle     | at | under the drawbridge, behind the stone lion, beside the dry moat, among the cannons |
                 a rusty suit of armour, a bat in a window, a flag with a unicorn
    mill       | at | under the great wheel, behind the flour sacks, beside the sluice, among the old gears |
                 a miller as white as snow, a trout in the race, a cart with two mules
    lake       | by | under the pier, behind the boat house, beside the picnic table, among the reeds |
                 a sail like a shark's fin, a fish jumping, a canoe with a dog in it
    """,
)

# how a change of weather is foreseen, comes, does harm and passes, and what a grown-up does about it
STORMS = table(
    "sign comes state over cure",
    """
    rain    | it smells of rain       | heavy rain began to fall        |
              wet through             | the rain stopped                | rubbed them dry
    gale    | the gulls fly inland    | a wild wind began to blow       |
              full of leaves          | the wind died down              | combed their hair
    snow    | I can smell snow        | thick snow began to fall        |
              white all over          | the snow stopped                | warmed their toes
    fog     | the hills have vanished | a thick fog came rolling in     |
              damp and clammy         | the fog lifted                  | made hot milk
    thunder | my knee aches again     | thunder crashed over them       |
              splashed with mud       | the thunder moved away          | hugged them all
    hail    | those clouds are green  | hail began to rattle down       |
              full of hailstones      | the hail turned to rain         | dabbed their hands
    dust    | the dust is dancing     | a whirl of dust came up         |
              grey with dust          | the dust settled                | washed their eyes
    heat    | it will be like an oven | the sun began to burn like fire |
              hot and sticky          | the heat was over               | made cold lemonade
    ice     | the puddles are glass   | freezing rain began to fall     |
              stiff with ice          | the ice thawed                  | lit a big fire
    """,
)
